package plugin

import (
	"bytes"
	"fmt"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/message/pool"

	"github.com/seed4911071e/groupgate/coap"
)

// fromPool copies a message out of go-coap's pool: the pool takes its own back
// when the handler returns, ours may be kept.
func fromPool(r *pool.Message) (*coap.Message, error) {
	body, err := r.ReadBody()
	if err != nil {
		return nil, fmt.Errorf("plugin: reading the body: %w", err)
	}
	in := r.Options()
	m := &coap.Message{
		Type:    coap.Type(r.Type()),
		Code:    coap.Code(r.Code()),
		ID:      uint16(r.MessageID()),
		Token:   bytes.Clone(r.Token()),
		Options: make(coap.Options, 0, len(in)),
		Payload: body,
	}
	for _, o := range in {
		m.Options = append(m.Options, coap.Option{ID: coap.OptionID(o.ID), Value: bytes.Clone(o.Value)})
	}
	return m, nil
}

// fill writes our response into the message that go-coap will send: its token,
// type and message ID are go-coap's business and stay.
func fill(dst *pool.Message, m *coap.Message) {
	dst.SetCode(codes.Code(m.Code))
	opts := make(message.Options, 0, len(m.Options))
	for _, o := range m.Options {
		opts = append(opts, message.Option{ID: message.OptionID(o.ID), Value: o.Value})
	}
	dst.ResetOptionsTo(opts)
	if len(m.Payload) > 0 {
		dst.SetBody(bytes.NewReader(m.Payload))
	} else {
		dst.SetBody(nil)
	}
	dst.SetModified(true)
}
