package admin

import (
	"bytes"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
)

// FuzzBody: a body of the API is the object expected or a problem that names
// what is wrong with it.
func FuzzBody(f *testing.F) {
	f.Add([]byte(`{"audience":"rs","scope":[{"group":"g","roles":["requester"]}],"lifetime":"24h"}`))
	f.Add([]byte(`{"audience":"rs"} {}`))
	f.Add([]byte(`[`))
	f.Fuzz(func(t *testing.T, body []byte) {
		r := httptest.NewRequest(http.MethodPost, "/v1/tokens", bytes.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		var ask TokenAsk
		err := readJSON(r, &ask)
		if p, ok := errors.AsType[*Problem](err); err != nil && (!ok || p.Status != http.StatusBadRequest) {
			t.Fatalf("%v", err)
		}
	})
}
