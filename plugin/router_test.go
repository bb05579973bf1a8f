package plugin

import (
	"testing"

	"github.com/seed4911071e/groupgate/coap"
)

// RFC 7252, Section 5.10.2, and RFC 8613, Section 8.2: a request to be
// forwarded or unprotected is not served by its path.
func TestForOthers(t *testing.T) {
	g := gatewayOf(t, settings())
	for name, c := range map[string]struct {
		option coap.OptionID
		value  string
		want   coap.Code
	}{
		"Proxy-Uri":    {coap.ProxyUri, "coap://gm.example.com/authz-info", coap.ProxyingNotSupported},
		"Proxy-Scheme": {coap.ProxyScheme, "coap", coap.ProxyingNotSupported},
		"OSCORE":       {coap.OSCOREOption, "\x09\x00\x01", coap.ServiceUnavailable}, // nobody to open it
		"neither":      {coap.UriHost, "gw.example.com", coap.ServiceUnavailable},    // it is not running
	} {
		req := &coap.Request{Code: coap.POST, Payload: []byte{0xa0}}
		req.Options.SetPath("authz-info")
		req.Options.AddString(c.option, c.value)
		_, err := g.ServeCoAP(t.Context(), req)
		if err == nil {
			t.Errorf("%s: served", name)
		} else if got := coap.ErrorResponse(err).Code; got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}
