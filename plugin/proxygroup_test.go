package plugin

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/proxy"
	"github.com/seed4911071e/groupgate/test/peers"
)

// TestGroupInHost: a request to a group through a host's go-coap server, with all
// responses, and its Early Stop (draft-ietf-core-groupcomm-proxy, Section 5.1.3), which
// has neither a proxy option nor a path of ours.
func TestGroupInHost(t *testing.T) {
	t.Parallel()
	group := peers.Group(t, "239.255.77.3", 2, func(i int, m *coap.Message) []*coap.Message {
		return []*coap.Message{{Type: coap.NonConfirmable, ID: uint16(i), Code: coap.Content, Token: m.Token, Payload: fmt.Append(nil, "lamp ", i)}}
	})
	c := authority(t)
	c.PSK = append(c.PSK, config.PSK{Identity: "panel", KeyFile: keyFile(t, keyF), May: []string{"proxy"}})
	c.Proxy.Allow = []config.ProxyTarget{{Target: "coap://" + group.At.String(), ProxyVia: config.ProxyVia{
		Addresses: []string{"239.255.77.3/32", "127.0.0.0/8"}, Timeout: 10 * time.Second, Parallel: 4, BlockSize: 1024, Interface: "lo",
	}}}
	g, _ := running(t, c)
	var strange atomic.Int64
	host := handles(func(context.Context, *coap.Request) (*coap.Response, error) {
		strange.Add(1)
		return nil, errors.New("not the host's")
	})
	at, _ := serveCoAPS(t, "127.0.0.1:0", "panel", keyF, g.Handler(host))
	waiting := func() (n float64) {
		t.Helper()
		families, err := g.registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			if f.GetName() == "groupgate_proxy_waiting" {
				n = f.GetMetric()[0].GetGauge().GetValue()
			}
		}
		return n
	}
	p := peers.Dial(t, at, "panel", keyF)

	ask := &coap.Message{Type: coap.Confirmable, Code: coap.GET, Token: []byte("group")}
	ask.Options.AddString(coap.ProxyUri, "coap://"+group.At.String()+"/lamp")
	ask.Options.SetUint(proxy.MulticastTimeout, 60)
	p.Send(ask)
	got := p.Responses(2, "group")
	if got["lamp 0"] == nil || got["lamp 1"] == nil {
		t.Fatalf("%v", got)
	}
	if n := waiting(); n != 1 {
		t.Fatalf("%v requests to groups", n)
	}
	stop := &coap.Message{Type: coap.Confirmable, Code: coap.GET, Token: []byte("group")}
	stop.Options.SetUint(proxy.MulticastTimeout, 0)
	p.Send(stop)
	ack := p.Receive("the acknowledgement of an Early Stop Request", func(m *coap.Message) bool { return m.ID == stop.ID && m.Type != coap.NonConfirmable })
	if ack.Type != coap.Acknowledgement || ack.Code != coap.Empty || strange.Load() != 0 {
		t.Errorf("%v %v, %d requests reached the host", ack.Type, ack.Code, strange.Load())
	}
	if n := waiting(); n != 0 {
		t.Errorf("%v requests to groups after it", n)
	}
}
