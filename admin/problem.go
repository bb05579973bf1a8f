package admin

import (
	"encoding/json"
	"errors"
	"net/http"

	"github.com/seed4911071e/groupgate/coap"
)

// Problem is an error of the API: problem details (RFC 9457) with members of
// our own.
type Problem struct {
	Status int    `json:"status"`
	Title  string `json:"title"`
	Detail string `json:"detail,omitempty"`
	Hint   string `json:"hint,omitempty"` // what to do about it

	Faults []LineFault `json:"faults,omitempty"` // mistakes in a file, by line
}

func (p *Problem) Error() string {
	if p.Detail != "" {
		return p.Detail
	}
	return http.StatusText(p.Status)
}

// httpStatus maps the codes that the rooms fail with: their domain errors are
// made for CoAP peers.
var httpStatus = map[coap.Code]int{
	coap.BadRequest:          http.StatusBadRequest,
	coap.Unauthorized:        http.StatusForbidden,
	coap.Forbidden:           http.StatusForbidden,
	coap.NotFound:            http.StatusNotFound,
	coap.MethodNotAllowed:    http.StatusConflict,
	coap.Conflict:            http.StatusConflict,
	coap.UnprocessableEntity: http.StatusUnprocessableEntity,
	coap.TooManyRequests:     http.StatusTooManyRequests,
	coap.ServiceUnavailable:  http.StatusServiceUnavailable,
}

// problemOf turns any error into a problem. Whoever holds the token runs the
// gateway, so the text is told whole; no error holds a secret.
func problemOf(err error) *Problem {
	if p, ok := errors.AsType[*Problem](err); ok {
		return p
	}
	status := http.StatusInternalServerError
	if s, ok := httpStatus[coap.ErrorResponse(err).Code]; ok {
		status = s
	}
	p := &Problem{Status: status, Detail: err.Error()}
	if status == http.StatusNotFound {
		p.Hint = "`gateway group list` shows the groups"
	}
	return p
}

func writeProblem(w http.ResponseWriter, p *Problem) {
	out := *p
	if out.Title == "" {
		out.Title = http.StatusText(out.Status)
	}
	writeJSON(w, out.Status, "application/problem+json", out)
}

func writeJSON(w http.ResponseWriter, status int, contentType string, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		panic("admin: internal error: " + err.Error())
	}
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n')) // a client that left hears nothing
}
