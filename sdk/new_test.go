package keystile_test

import (
	"strings"
	"testing"

	keystile "github.com/supportstation/keystile/sdk"
)

func TestNew_TakesOnlyAnOriginWhereTheTokenIsSafe(t *testing.T) {
	for _, url := range []string{
		"https://keystile.example", "https://keystile.example:8443/", "http://127.0.0.1:8080", "http://[::1]:8080", "http://localhost:1",
	} {
		if _, err := keystile.New(url, token); err != nil {
			t.Errorf("New(%q): %v", url, err)
		}
	}
	for _, url := range []string{
		"", "keystile.example", "127.0.0.1:8080", "ftp://keystile.example", "https://", "http://keystile.example", "http://10.0.0.1",
		"http://localhost.example", "https://user:hunter2@keystile.example", "https://keystile.example/v1", "https://keystile.example?a=b",
		"https://keystile.example/?", "https://keystile.example#f", "https://hunter2\x7f.example", "https:keystile.example",
	} {
		_, err := keystile.New(url, token)
		if err == nil {
			t.Errorf("New(%q) is accepted", url)
		} else if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("New(%q): the error holds the URL: %v", url, err)
		}
	}
	if _, err := keystile.New("http://10.0.0.1", token, keystile.WithInsecurePlaintext()); err != nil {
		t.Errorf("WithInsecurePlaintext: %v", err)
	}
}

func TestNew_RefusesWhatIsNoCallerToken(t *testing.T) {
	for _, wrong := range []string{"", "ksa_hunter2", "ksc_hunter2\n", "ksc_ hunter2", "ksc_hünter2"} {
		_, err := keystile.New("https://keystile.example", wrong)
		if err == nil {
			t.Errorf("token %q is accepted", wrong)
		} else if strings.Contains(err.Error(), "nter2") {
			t.Errorf("the error holds the token: %v", err)
		}
	}
	if _, err := keystile.New("https://keystile.example", token, keystile.WithTimeout(0)); err == nil {
		t.Error("a timeout of 0 is accepted")
	}
}
