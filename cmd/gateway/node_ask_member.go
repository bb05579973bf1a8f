package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/node"
	"github.com/seed4911071e/groupgate/oscore"
)

// askGrace is how long messages under the keys before a rekey are read.
const askGrace = 10 * time.Second

// asMember asks with Group OSCORE, as the member that --state keeps: over its own
// association, or over one of the client that the flags name.
func (a *asking) asMember(ctx context.Context, e *env, as *nodeTalkFlags, at nodeAddrs, client node.Client) error {
	u, err := url.Parse(a.At)
	if err != nil || u.Host == "" || u.Fragment != "" || u.User != nil {
		return fmt.Errorf("%q is no URI to be asked for", a.At)
	}
	log := slog.New(slog.NewTextHandler(e.stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	roles, err := a.kept(as, log)
	if err != nil {
		return err
	}
	req := &coap.Message{Code: methodNamed(a.Method), Payload: []byte(a.Payload)}
	setPathQuery(&req.Options, u.RequestURI())
	if a.Observe {
		req.Options.SetUint(coap.ObserveOption, 0)
	}
	as.Grace = askGrace
	return as.enterAndPlay(ctx, io.Discard, at, client, roles, log, func(ctx context.Context, t *talker) error {
		if !a.Pairwise && !t.traffic.Group().HasGroupMode() {
			return errors.New("the group has no group mode: use --pairwise")
		}
		to, err := peerFor(ctx, t.member, a.Pairwise, a.Peer)
		if err != nil {
			return err
		}
		ask := func(via node.Transport) error {
			return t.traffic.AskVia(ctx, via, u.Scheme+"://"+u.Host, to, req, a.Wait, a.read)
		}
		if a.Client == "" && a.Identity == "" && !as.OSCORE {
			if err := ask(t.member.Transport()); err != nil && ctx.Err() == nil {
				return nodeAdvice("ask", at.coaps, err)
			}
			return nil
		}
		return dialed(ctx, at, client, ask)
	})
}

// kept fills in what the state file says about the member.
func (a *asking) kept(as *nodeTalkFlags, log *slog.Logger) (roles groupcomm.Roles, err error) {
	nobody := func(err error) error {
		return withHint(fmt.Errorf("--state: %w", err), "a node that was run with this --state is a member: `gateway node join --state FILE` makes one, and must have ended")
	}
	if _, err := os.Stat(a.State); errors.Is(err, fs.ErrNotExist) {
		return 0, nobody(err)
	}
	as.State, as.Interface = a.State, "current"
	state, err := as.openState(log)
	if err != nil {
		return 0, err
	}
	defer state.close()
	k, err := state.kept()
	if err == nil && k == nil {
		err = nobody(fmt.Errorf("%s keeps no membership", a.State))
	}
	if err != nil {
		return 0, err
	}
	if until := k.access.ExpiresAt; !until.IsZero() && !time.Now().Before(until) {
		return 0, nobody(fmt.Errorf("the access token of the membership in %s has expired", a.State))
	}
	as.Group, as.OSCORE, as.RPK = k.group, k.access.Material != nil, k.access.PrivateKey != nil
	as.Phased, as.Creds, as.Poll = true, true, time.Minute
	return node.SavedRoles(k.saved)
}

// read tells of an answer under Group OSCORE, or of why it could not be read.
func (a *asking) read(x node.Answer) {
	a.story.answer(0, x)
	if x.Err == nil {
		a.counted(x.Message.Options.Has(coap.ObserveOption))
		return
	}
	if !x.From.IsValid() {
		a.refused = errors.New("no answer of a member")
		if errors.Is(x.Err, oscore.ErrUnprotected) {
			a.refused = withHint(a.refused, "it came in clear: from the gateway, whose log says more, or from a server that does not have the keys of the group")
		}
	}
}
