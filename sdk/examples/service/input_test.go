package service

import (
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/gin-gonic/gin"
	"github.com/google/go-cmp/cmp"
)

func testFields() []Field {
	return []Field{
		{Name: "subject", Max: 5, Required: true},
		{Name: "status", Max: 10, Check: func(s string) error {
			if s != "open" {
				return errors.New("must be open")
			}
			return nil
		}},
	}
}

func post(contentType, body string) (*gin.Context, *httptest.ResponseRecorder) {
	w := httptest.NewRecorder()
	c, _ := gin.CreateTestContext(w)
	c.Request = httptest.NewRequest(http.MethodPost, "/", strings.NewReader(body))
	c.Request.Header.Set("Content-Type", contentType)
	return c, w
}

func TestReadFields_RefusesWhatCanBeReadInTwoWays(t *testing.T) {
	tests := []struct {
		name, body string
		status     int
		code       string
	}{
		{"empty", ``, 400, "malformed_json"},
		{"no object", `["subject"]`, 400, "malformed_json"},
		{"null", `null`, 400, "malformed_json"},
		{"cut off", `{"subject":"a"`, 400, "malformed_json"},
		{"cut off in a name", `{"sub`, 400, "malformed_json"},
		{"cut off in a value", `{"subject":"a`, 400, "malformed_json"},
		{"a comma at the end", `{"subject":"a",}`, 400, "malformed_json"},
		{"duplicate", `{"subject":"a","subject":"b"}`, 400, "duplicate_field"},
		{"duplicate by an escape", `{"subject":"a","subj\u0065ct":"b"}`, 400, "duplicate_field"},
		{"another case", `{"Subject":"a"}`, 400, "unknown_field"},
		{"a Kelvin sign", "{\"subject\":\"a\",\"\u212a\":\"b\"}", 400, "unknown_field"},
		{"unknown", `{"subject":"a","organization":"org_x"}`, 400, "unknown_field"},
		{"a second object", `{"subject":"a"}{"subject":"b"}`, 400, "trailing_data"},
		{"text behind", `{"subject":"a"} x`, 400, "trailing_data"},
		{"NUL", `{"subject":"a\u0000"}`, 400, "nul_character"},
		{"not UTF-8", "{\"subject\":\"\xff\"}", 400, "invalid_utf8"},
		{"a number", `{"subject":1}`, 422, "invalid_type"},
		{"a null value", `{"subject":null}`, 422, "invalid_type"},
		{"an object inside", `{"subject":{"a":"b"}}`, 422, "invalid_type"},
		{"nothing", `{}`, 422, "missing_field"},
		{"a required one is missing", `{"status":"open"}`, 422, "missing_field"},
		{"empty value", `{"subject":""}`, 422, "out_of_range"},
		{"spaces", `{"subject":" \t\n"}`, 422, "out_of_range"},
		{"too long", `{"subject":"äöüßéx"}`, 422, "string_too_long"},
		{"wrong value", `{"subject":"a","status":"hunter2"}`, 422, "out_of_range"},
		{"too large", `{"subject":"` + strings.Repeat("a", 64<<10) + `"}`, 413, "body_too_large"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, w := post("application/json", tt.body)
			values, ok := ReadFields(c, testFields()...)
			var p Problem
			if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil || ok || values != nil {
				t.Fatalf("read %v, %v; answer %s", values, ok, w.Body)
			}
			if w.Code != tt.status || p.Code != tt.code || !c.IsAborted() || w.Header().Get("Content-Type") != "application/problem+json" {
				t.Errorf("%d %s; want %d %s", w.Code, w.Body, tt.status, tt.code)
			}
			if strings.Contains(w.Body.String(), "hunter2") {
				t.Errorf("the rejected value is in the answer: %s", w.Body)
			}
		})
	}
}

func TestReadFields_TakesOnlyJSON(t *testing.T) {
	for contentType, want := range map[string]bool{
		"application/json": true, "application/json; charset=utf-8": true, "Application/JSON": true,
		"": false, "text/plain": false, "application/x-www-form-urlencoded": false, "application/jsonp": false,
	} {
		c, w := post(contentType, `{"subject":"äöüßé"}`)
		values, ok := ReadFields(c, testFields()...)
		if ok != want || (!want && w.Code != http.StatusUnsupportedMediaType) {
			t.Errorf("%q: %v, %d", contentType, ok, w.Code)
		}
		if want && !cmp.Equal(values, map[string]string{"subject": "äöüßé"}) {
			t.Errorf("%q: read %v", contentType, values)
		}
	}
}

func FuzzDecodeObject(f *testing.F) {
	for _, seed := range []string{`{"subject":"a"}`, `{"subject":"a","status":"open"}`, `{"subject":"a"}{}`, `{"":""}`, `{"subject":"\u0000"}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		values, err := decodeObject(body, testFields())
		if err != nil {
			return
		}
		var plain map[string]any
		if json.Unmarshal(body, &plain) != nil || len(plain) != len(values) {
			t.Errorf("%q is read as %v, and by another reader as %v", body, values, plain)
		}
		for name, value := range values {
			if plain[name] != value {
				t.Errorf("%q is read as %v, and by another reader as %v", body, values, plain)
			}
		}
	})
}

func get(query string) (*gin.Context, *httptest.ResponseRecorder) {
	w := httptest.NewRecorder()
	c, _ := gin.CreateTestContext(w)
	c.Request = httptest.NewRequest(http.MethodGet, "/?"+query, nil)
	return c, w
}

func TestReadPage_BoundsTheLimitAndTakesOnlyOwnCursors(t *testing.T) {
	wanted := map[string]PageRequest{
		"":                                      {Before: math.MaxInt64, Limit: 20},
		"limit=1":                               {Before: math.MaxInt64, Limit: 1},
		"limit=100&n=7":                         {Before: math.MaxInt64, Limit: 100},
		"cursor=YmVmb3JlIDQy":                   {Before: 42, Limit: 20},
		"cursor=" + encodeCursor(math.MaxInt64): {Before: math.MaxInt64, Limit: 20},
	}
	for query, want := range wanted {
		c, w := get(query)
		if got, ok := ReadPage(c); !ok || got != want {
			t.Errorf("%q: %+v, %d; want %+v", query, got, w.Code, want)
		}
	}
	for _, query := range []string{
		"limit=0", "limit=101", "limit=-1", "limit=", "limit=ten", "limit=99999999999999999999",
		"cursor=", "cursor=42", "cursor=!", "cursor=" + url.QueryEscape("before 42"), "cursor=YmVmb3JlIC0x",
	} {
		c, w := get(query)
		if page, ok := ReadPage(c); ok || w.Code != http.StatusBadRequest {
			t.Errorf("%q: %+v, %d; want 400", query, page, w.Code)
		}
	}
}

func TestNewPage_WalksTheWholeListOnce(t *testing.T) {
	all := []int64{9, 8, 7, 5, 3, 2, 1}
	for limit := 1; limit <= len(all)+1; limit++ {
		var walked []int64
		request := PageRequest{Before: math.MaxInt64, Limit: limit}
		for range len(all) + 1 {
			var rows []int64
			for _, id := range all {
				if id < request.Before && len(rows) < limit+1 {
					rows = append(rows, id)
				}
			}
			page := NewPage(rows, request, func(id int64) int64 { return id })
			if len(page.Items) > limit {
				t.Errorf("limit %d: a page of %d", limit, len(page.Items))
			}
			walked = append(walked, page.Items...)
			if page.NextCursor == nil {
				break
			}
			var err error
			if request.Before, err = decodeCursor(*page.NextCursor); err != nil {
				t.Fatal(err)
			}
		}
		if diff := cmp.Diff(all, walked); diff != "" {
			t.Errorf("limit %d (-want +got):\n%s", limit, diff)
		}
	}
	if encoded, err := json.Marshal(NewPage[int64](nil, PageRequest{Limit: 1}, nil)); err != nil || string(encoded) != `{"items":[],"next_cursor":null}` {
		t.Errorf("an empty page is %s, %v", encoded, err)
	}
}

func TestPathID_TakesTheWrittenFormOnly(t *testing.T) {
	for text, want := range map[string]int64{"42": 42, "9223372036854775807": math.MaxInt64} {
		c, _ := get("")
		c.Params = gin.Params{{Key: "id", Value: text}}
		if id, ok := PathID(c); !ok || id != want {
			t.Errorf("%q: %d, %v", text, id, ok)
		}
	}
	for _, text := range []string{"", "0", "-1", "+1", "042", "4 2", "0x2a", "four", "9223372036854775808", "4_2"} {
		c, w := get("")
		c.Params = gin.Params{{Key: "id", Value: text}}
		if id, ok := PathID(c); ok || w.Code != http.StatusNotFound {
			t.Errorf("%q: %d, %d; want 404", text, id, w.Code)
		}
	}
}
