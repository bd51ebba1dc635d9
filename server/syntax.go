package server

import (
	"bytes"
	"errors"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// maxTokens bounds the names and values of a management body: decoded they take far
// more memory than as text.
const maxTokens = 64 << 10

// checkText refuses a body that is no text.
func checkText(body []byte) *problem {
	if !utf8.Valid(body) {
		return badRequest("invalid_utf8", "The body is not valid UTF-8.")
	}
	if bytes.IndexByte(body, 0) >= 0 {
		return badRequest("nul_character", "The body contains a NUL character.")
	}
	return nil
}

// checkSyntax takes one JSON value with nothing after it, without NUL characters and
// with no name twice in any object, however deep.
func checkSyntax(body []byte) *problem {
	if issue := checkText(body); issue != nil {
		return issue
	}
	decoder := jsontext.NewDecoder(bytes.NewReader(body))
	for tokens := 0; ; tokens++ {
		token, err := decoder.ReadToken()
		if err != nil {
			return syntaxProblem(err)
		}
		if token.Kind() == '"' && strings.IndexByte(token.String(), 0) >= 0 {
			return badRequest("nul_character", "A string contains a NUL character.")
		}
		if tokens == maxTokens {
			return badRequest("malformed_json", "The body has more values than any request needs.")
		}
		if decoder.StackDepth() == 0 {
			return trailingData(decoder)
		}
	}
}

// trailingData refuses whatever follows the value that was read.
func trailingData(decoder *jsontext.Decoder) *problem {
	_, err := decoder.ReadToken()
	if errors.Is(err, io.EOF) {
		return nil
	}
	return badRequest("trailing_data", "There is something after the JSON object.")
}

// syntaxProblem tells what is wrong with the JSON, and where, without its text.
func syntaxProblem(err error) *problem {
	if errors.Is(err, jsontext.ErrDuplicateName) {
		return badRequest("duplicate_field", "A field is given twice.")
	}
	var syntax *jsontext.SyntacticError
	if errors.As(err, &syntax) {
		return badRequest("malformed_json", "The body is not valid JSON near byte "+
			strconv.FormatInt(syntax.ByteOffset, 10)+".")
	}
	return badRequest("malformed_json", "The body ends before the JSON does.")
}
