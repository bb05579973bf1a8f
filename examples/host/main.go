// Command host is an existing CoAP gateway, built on go-coap with DTLS, that
// mounts groupgate: the lines between the two marks are all that it takes.
package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"flag"
	"fmt"
	"log"
	"log/slog"
	"os"
	"os/signal"

	piondtls "github.com/pion/dtls/v3"
	"github.com/plgd-dev/go-coap/v3/dtls"
	"github.com/plgd-dev/go-coap/v3/dtls/server"
	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/mux"
	"github.com/plgd-dev/go-coap/v3/net"
	"github.com/plgd-dev/go-coap/v3/options"
	"golang.org/x/sync/errgroup"

	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/plugin"
)

// peers are the pre-shared keys that the host had before, by psk_identity.
type peers map[string][]byte

func (p peers) psk(identity []byte) ([]byte, error) {
	if key, ok := p[string(identity)]; ok {
		return key, nil
	}
	return nil, fmt.Errorf("no peer %q", identity)
}

// hostRouter is the router that the host had before.
func hostRouter() *mux.Router {
	r := mux.NewRouter()
	_ = r.Handle("/temperature", mux.HandlerFunc(func(w mux.ResponseWriter, _ *mux.Message) {
		_ = w.SetResponse(codes.Content, message.TextPlain, bytes.NewReader([]byte("21.5")))
	}))
	_ = r.Handle("/.well-known/core", mux.HandlerFunc(func(w mux.ResponseWriter, _ *mux.Message) {
		_ = w.SetResponse(codes.Content, message.AppLinkFormat, bytes.NewReader([]byte(`</temperature>;rt="temperature-c"`)))
	}))
	return r
}

func main() {
	addr := flag.String("listen", "127.0.0.1:5684", "where to serve CoAP over DTLS")
	dir := flag.String("data-dir", "groupgate-data", "the gateway's data folder")
	psk := flag.String("psk", "", "hexadecimal key of the host's own peer \"operator\"")
	flag.Parse()
	own := peers{}
	if *psk != "" {
		key, err := hex.DecodeString(*psk)
		if err != nil {
			log.Fatalf("-psk: %v", err)
		}
		own["operator"] = key
	}
	listen := config.Embedded().Listen
	listen.CoAPS = *addr
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, listen, *dir, own.psk, func(string) {}); err != nil {
		log.Fatal(err)
	}
}

// run serves until ctx ends or the gateway fails. ready is told the address as
// soon as it is bound.
func run(ctx context.Context, listen config.Listen, dir string, hostPSK func([]byte) ([]byte, error), ready func(addr string)) error {
	g, ctx := errgroup.WithContext(ctx)

	// -- groupgate begins --
	cfg := config.Embedded() // or config.Load("gateway.yaml")
	cfg.DataDir = dir
	cfg.Listen = listen // coaps: what nodes are told; http, mqtt: served by the gateway
	gg, err := plugin.New(cfg, slog.Default())
	if err != nil {
		return err
	}
	g.Go(func() error { return gg.Run(ctx) })
	handler, psk := gg.Handler(hostRouter()), gg.PSK(hostPSK)
	// -- groupgate ends --

	g.Go(func() error {
		return serve(ctx, listen.CoAPS, psk, ready, options.WithMux(handler),
			options.WithRequestMonitor(gg.Monitor), options.WithOnNewConn(gg.Connected))
	})
	return g.Wait()
}

// serve is how the host served before: go-coap with its defaults.
func serve(ctx context.Context, addr string, psk piondtls.PSKCallback, ready func(string), opts ...server.Option) error {
	l, err := net.NewDTLSListener("udp", addr, net.NewDTLSServerOptions(
		piondtls.WithPSK(psk),
		piondtls.WithCipherSuites(piondtls.TLS_PSK_WITH_AES_128_CCM_8),
	))
	if err != nil {
		return err
	}
	srv := dtls.NewServer(append(opts, options.WithContext(ctx))...)
	defer context.AfterFunc(ctx, func() {
		srv.Stop()
		_ = l.Close() // Stop does not while Serve has not begun
	})()
	ready(l.Addr().String())
	return srv.Serve(l)
}
