package node

import (
	"context"
	"fmt"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// Sleep announces to the gateway that the node stays awake for a while and wakes
// again after next, counted from now; next 0 says that it does not know. It
// returns whether the gateway has newer keying material for this group than the
// node showed to have: then it is on its way, and a node that still holds an old
// version can ask by [Member.Poll]. channel, when not empty, says over which
// channel the node wants to be told from now on. A Group Manager that does not
// know the resource takes no note, and asking is the only way to know.
//
// PUT /gw/me; both times are sent in whole seconds.
func (m *Member) Sleep(ctx context.Context, awake, next time.Duration, channel string) (pending bool, err error) {
	_, t, err := m.joined()
	if err != nil {
		return false, err
	}
	req := &coap.Request{Code: coap.PUT, Payload: (&groupcomm.Announcement{
		AwakeFor: seconds(awake), NextWake: seconds(next), Channel: channel,
	}).Encode()}
	req.Options.SetPath("gw", "me")
	req.Options.SetContentFormat(coap.CBOR)
	resp, err := t.Do(ctx, req)
	if err != nil {
		return false, fmt.Errorf("announce sleep: %w", err)
	}
	switch resp.Code {
	case coap.Changed:
	case coap.NotFound, coap.MethodNotAllowed:
		return true, nil // some other Group Manager
	default:
		return false, m.concern(refused("announce sleep", resp))
	}
	p, err := groupcomm.DecodePending(resp.Payload)
	if err != nil {
		return false, badAnswer("announce sleep", "%v", err)
	}
	for _, g := range p.Groups {
		if g.Name == m.cfg.Group {
			return true, nil
		}
	}
	return false, nil
}

// Wake is one short time awake of a node that sleeps otherwise: it asks for the
// newest keying material, which also shows what it has and whether it is still a
// member, and tells the gateway that it sleeps for next now. What came up in
// between it takes before that.
func (m *Member) Wake(ctx context.Context, next time.Duration) error {
	if err := m.Poll(ctx); err != nil {
		return err
	}
	pending, err := m.Sleep(ctx, 0, next, "")
	if err != nil || !pending {
		return err
	}
	return m.Poll(ctx)
}

func seconds(d time.Duration) uint64 {
	if d <= 0 {
		return 0
	}
	return uint64((d + time.Second - 1) / time.Second)
}
