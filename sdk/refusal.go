package keystile

import "net/http"

// Codes of requests that a [Guard] answers without a decision.
const (
	// CodeDuplicateCredential (400): one credential header was sent twice.
	CodeDuplicateCredential Code = "duplicate_credential"
	// CodeConflictingCredentials (401): Authorization and X-API-Key differ.
	CodeConflictingCredentials Code = "conflicting_credentials"
	// CodeMethodOverride (400): a header asks for another method than was checked.
	CodeMethodOverride Code = "method_override"
	// CodeInvalidTarget (400): the request's target is no absolute path.
	CodeInvalidTarget Code = "invalid_target"
	// CodePathTooLong (414): the path is longer than the service takes.
	CodePathTooLong Code = "path_too_long"
	// CodeMethodTooLong (400): the method is longer than any known one.
	CodeMethodTooLong Code = "method_too_long"
	// CodeRequestRefused (400): the service refused the question for something
	// that the client had sent.
	CodeRequestRefused Code = "request_refused"
)

// refuse answers a request by itself, without a decision of the service.
func refuse(w http.ResponseWriter, code Code) error {
	p, challenge := refusal(code)
	p.Code, p.Type = code, "urn:keystile:problem:"+string(code)
	if challenge != "" {
		w.Header().Del("WWW-Authenticate")
		w.Header()["WWW-Authenticate"] = []string{challenge}
	}
	return p.write(w, p.Status)
}

// refusal returns the problem for code, and a challenge (RFC 6750 §3) or "".
// What it does not know could not be decided.
func refusal(code Code) (p *Problem, challenge string) {
	switch code {
	case CodeKeyMissing:
		return &Problem{
			Status: http.StatusUnauthorized, Title: "API key missing",
			Detail: "Send your API key in the Authorization header as a Bearer token.",
		}, "Bearer"
	case CodeDuplicateCredential:
		return &Problem{
			Status: http.StatusBadRequest, Title: "Credential sent twice",
			Detail: "Send exactly one Authorization header, or one X-API-Key header.",
		}, `Bearer error="invalid_request"`
	case CodeConflictingCredentials:
		return &Problem{
			Status: http.StatusUnauthorized, Title: "Conflicting credentials",
			Detail: "Authorization and X-API-Key hold different credentials. Send one of them.",
		}, `Bearer error="invalid_token"`
	case CodeMethodOverride:
		return &Problem{
			Status: http.StatusBadRequest, Title: "Method override refused",
			Detail: "Send the method itself; headers that ask for another one are not accepted.",
		}, ""
	case CodeInvalidTarget:
		return &Problem{
			Status: http.StatusBadRequest, Title: "Invalid request target",
			Detail: "The request target must be a path that starts with a slash.",
		}, ""
	case CodePathTooLong:
		return &Problem{
			Status: http.StatusRequestURITooLong, Title: "Path too long",
			Detail: "The path is longer than 8192 bytes.",
		}, ""
	case CodeMethodTooLong:
		return &Problem{
			Status: http.StatusBadRequest, Title: "Method too long",
			Detail: "The method is longer than any that is known here.",
		}, ""
	case CodeRequestRefused:
		return &Problem{
			Status: http.StatusBadRequest, Title: "Request refused",
			Detail: "The request holds something that cannot be checked, such as a text that is too long.",
		}, ""
	default:
		return &Problem{
			Status: http.StatusServiceUnavailable, Title: "Authorization unavailable",
			Detail: "It could not be decided whether this request is allowed. Try again.",
		}, ""
	}
}
