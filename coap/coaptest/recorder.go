// Package coaptest has what tests of CoAP code need: a [Recorder] that calls a
// handler directly, and a [Link] that joins a serve.Server with a client
// through a network in memory that loses, doubles and reorders datagrams on
// demand.
//
// Everything is made of the time package, channels and one seeded source of
// randomness, so that it runs inside the bubbles of testing/synctest, where
// minutes of retransmission take no time.
package coaptest

import (
	"context"

	"github.com/seed4911071e/groupgate/coap"
)

// Recorder calls a handler as the server core does, without a network.
type Recorder struct {
	Handler coap.Handler
	Peer    coap.Peer // of requests that name none
}

// Do returns the response, that of the error when the handler returns one. A
// handler that returns neither gives an empty 5.00.
func (r *Recorder) Do(ctx context.Context, req *coap.Request) *coap.Response {
	resp, _ := r.Try(ctx, req)
	return resp
}

// Try returns the handler's error as well.
func (r *Recorder) Try(ctx context.Context, req *coap.Request) (*coap.Response, error) {
	c := req.Clone()
	if c.Peer.Link == "" {
		c.Peer = r.Peer
	}
	resp, err := r.Handler.ServeCoAP(ctx, c)
	if err != nil {
		return coap.ErrorResponse(err), err
	}
	if resp == nil {
		return &coap.Response{Code: coap.InternalServerError}, nil
	}
	return resp, nil
}

// NewRequest makes a request for a path such as "/ace-group/gp1".
func NewRequest(code coap.Code, path string, payload []byte) *coap.Request {
	req := &coap.Request{Code: code, Payload: payload}
	req.Options.SetPath(coap.PathOf(path)...)
	return req
}
