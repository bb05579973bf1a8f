package oscore

import (
	"bytes"
	"errors"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
)

func TestSet(t *testing.T) {
	var set Set
	var clients []*Context
	contexts := [][]byte{nil, {}, []byte("a"), []byte("b")}
	for _, idContext := range contexts {
		client, server := pair(t, both(func(p *Params) { p.IDContext = idContext; p.OmitIDContext = string(idContext) == "b" }))
		if err := set.Add(server); err != nil {
			t.Fatal(err)
		}
		if err := set.Add(server); err == nil {
			t.Error("a context is in twice")
		}
		clients = append(clients, client)
	}
	if set.Len() != 4 || !set.Has([]byte{1}) || set.Has([]byte{2}) {
		t.Errorf("%d contexts", set.Len())
	}
	var found *Context
	for i, client := range clients {
		p, _, err := client.ProtectRequest(t.Context(), nil, get("a"))
		if err != nil {
			t.Fatal(err)
		}
		c, m, ex, err := set.UnprotectRequest(nil, p)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(c.IDContext(), contexts[i]) || m.Code != coap.GET {
			t.Errorf("%v, %+v", c, m)
		}
		if _, err := c.ProtectResponse(t.Context(), nil, ex, content("x")); err != nil {
			t.Error(err)
		}
		if _, _, _, err := set.UnprotectRequest(nil, p); !errors.Is(err, ErrReplay) && !errors.Is(err, ErrDecrypt) {
			t.Errorf("replay: %v", err)
		}
		found = c
	}
	if !set.Remove(found) || set.Remove(found) || set.Len() != 3 {
		t.Errorf("%d contexts", set.Len())
	}
	for _, c := range []struct {
		m    *coap.Message
		want error
	}{
		{get("a"), ErrUnprotected},
		{&coap.Message{Code: coap.POST, Options: coap.Options{{ID: 9, Value: unhex(t, "090199")}}, Payload: make([]byte, 9)}, ErrContext},
		{&coap.Message{Code: coap.POST, Options: coap.Options{{ID: 9, Value: unhex(t, "01ff")}}, Payload: make([]byte, 9)}, ErrOption},
		{&coap.Message{Code: coap.POST, Options: coap.Options{{ID: 9, Value: unhex(t, "090101")}}, Payload: make([]byte, 9)}, ErrDecrypt},
	} {
		ctx, m, ex, err := set.UnprotectRequest(nil, c.m)
		if !errors.Is(err, c.want) || ctx != nil || m != nil || ex != (Exchange{}) {
			t.Errorf("%+v: %v", c.m, err)
		}
	}
}
