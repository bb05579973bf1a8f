package oscore_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/oscore"
)

// ends makes the contexts of a client and of a server.
func ends() (client, server *oscore.Context) {
	p := oscore.Params{
		MasterSecret: cose.NewSecret([]byte("shared secret of both")),
		MasterSalt:   []byte("salt"),
		SenderID:     []byte{0x01},
		RecipientID:  []byte{0x02},
	}
	client, err := oscore.New(p)
	if err != nil {
		log.Fatal(err)
	}
	p.SenderID, p.RecipientID = p.RecipientID, p.SenderID
	server, err = oscore.New(p)
	if err != nil {
		log.Fatal(err)
	}
	return client, server
}

func Example() {
	ctx := context.Background()
	client, server := ends()

	// The client protects a request.
	request := &coap.Message{Code: coap.GET}
	request.Options.SetPath("temperature")
	protected, exchange, err := client.ProtectRequest(ctx, nil, request)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("on the wire:", protected.Code, protected.Options.Path())

	// The server reads it and protects its response.
	received, binding, err := server.UnprotectRequest(nil, protected)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("served:", received.Code, received.Options.Path())
	answer, err := server.ProtectResponse(ctx, nil, binding, &coap.Message{Code: coap.Content, Payload: []byte("21 °C")})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("on the wire:", answer.Code)

	// The client reads that.
	response, err := client.UnprotectResponse(nil, &exchange, answer)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("answered:", response.Code, string(response.Payload))

	// Output:
	// on the wire: POST []
	// served: GET [temperature]
	// on the wire: 2.04
	// answered: 2.05 21 °C
}

// A server with many contexts finds the right one, answers what it does not
// accept, and makes no allocations when it uses its buffers again.
func ExampleSet() {
	ctx := context.Background()
	client, server := ends()
	var contexts oscore.Set
	if err := contexts.Add(server); err != nil {
		log.Fatal(err)
	}
	var in, out oscore.Buffer
	serve := func(m *coap.Message) *coap.Message {
		c, request, binding, err := contexts.UnprotectRequest(&in, m)
		var reply *coap.Message
		if err != nil {
			reply, err = c.Refuse(ctx, &out, binding, err) // c may be nil
		} else {
			reply, err = c.ProtectResponse(ctx, &out, binding, &coap.Message{Code: coap.Changed, Payload: request.Payload})
		}
		if err != nil {
			log.Fatal(err)
		}
		return reply
	}

	protected, exchange, err := client.ProtectRequest(ctx, nil, &coap.Message{Code: coap.POST, Payload: []byte("hello")})
	if err != nil {
		log.Fatal(err)
	}
	response, err := client.UnprotectResponse(nil, &exchange, serve(protected))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(response.Code, string(response.Payload))
	again := serve(protected)
	fmt.Println(again.Code, string(again.Payload))

	// Output:
	// 2.04 hello
	// 4.01 Replay detected
}

// Notifications go out under the exchange of the registration, and the client takes
// each once, in order.
func ExampleContext_ProtectResponse_observe() {
	ctx := context.Background()
	client, server := ends()
	register := &coap.Message{Code: coap.GET}
	register.Options.SetUint(coap.ObserveOption, 0)
	protected, exchange, err := client.ProtectRequest(ctx, nil, register)
	if err != nil {
		log.Fatal(err)
	}
	_, binding, err := server.UnprotectRequest(nil, protected)
	if err != nil {
		log.Fatal(err)
	}
	var sent []*coap.Message
	for i, state := range []string{"cold", "warm", "hot"} {
		n := &coap.Message{Code: coap.Content, Payload: []byte(state)}
		n.Options.SetUint(coap.ObserveOption, uint32(i))
		p, err := server.ProtectResponse(ctx, nil, binding, n)
		if err != nil {
			log.Fatal(err)
		}
		sent = append(sent, p)
	}
	for _, i := range []int{0, 2, 1} { // the network changed their order
		n, err := client.UnprotectResponse(nil, &exchange, sent[i])
		if errors.Is(err, oscore.ErrReplay) {
			fmt.Println("too late")
			continue
		}
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(string(n.Payload))
	}
	// Output:
	// cold
	// hot
	// too late
}

// An endpoint that is started again: numbers go on behind all that may have been
// used, and what was received is found out by Echo.
func ExampleFile() {
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	ctx := context.Background()
	for range 2 {
		file, err := oscore.OpenFile(filepath.Join(dir, "peer-02"))
		if err != nil {
			log.Fatal(err)
		}
		p := oscore.Params{
			MasterSecret: cose.NewSecret([]byte("shared secret of both")),
			SenderID:     []byte{0x01}, RecipientID: []byte{0x02},
			Sequence: oscore.SequenceConfig{Start: file.Start(), Store: file},
		}
		if file.Start() > 0 {
			p.Window = &oscore.WindowState{} // lost
		}
		c, err := oscore.New(p)
		if err != nil {
			log.Fatal(err)
		}
		_, exchange, err := c.ProtectRequest(ctx, nil, &coap.Message{Code: coap.GET})
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println("Partial IV", exchange.PIV())
	}
	// Output:
	// Partial IV 0
	// Partial IV 256
}

// Two endpoints that store nothing: the first request brings a new context about,
// the second is served.
func ExampleRenewal() {
	ctx := context.Background()
	p := oscore.Params{MasterSecret: cose.NewSecret([]byte("shared secret of both")), SenderID: []byte{1}, RecipientID: []byte{2}}
	client, err := oscore.NewRenewal(p)
	if err != nil {
		log.Fatal(err)
	}
	p.SenderID, p.RecipientID = p.RecipientID, p.SenderID
	server, err := oscore.NewRenewal(p)
	if err != nil {
		log.Fatal(err)
	}
	for {
		protected, exchange, err := client.ProtectRequest(ctx, nil, &coap.Message{Code: coap.GET})
		if err != nil {
			log.Fatal(err)
		}
		c, request, binding, err := server.UnprotectRequest(nil, protected)
		var answer *coap.Message
		if err != nil {
			answer, err = c.Refuse(ctx, nil, binding, err)
		} else {
			fmt.Println("served", request.Code)
			answer, err = c.ProtectResponse(ctx, nil, binding, &coap.Message{Code: coap.Content})
		}
		if err != nil {
			log.Fatal(err)
		}
		response, err := client.UnprotectResponse(nil, exchange, answer)
		if errors.Is(err, oscore.ErrRenewed) {
			fmt.Println("renewed")
			continue
		}
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println("answered", response.Code)
		return
	}
	// Output:
	// renewed
	// served GET
	// answered 2.05
}
