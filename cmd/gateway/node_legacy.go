package main

import (
	"context"
	"errors"
	"log/slog"

	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/node"
)

// runLegacy plays a node of 2019 or 2020 from the token on.
func (c *nodeJoinCmd) runLegacy(ctx context.Context, d groupcomm.Interface, roles groupcomm.Roles, at nodeAddrs,
	access *node.Access, story *nodeStory, log *slog.Logger) error {
	info, err := overUDP(ctx, at.coap, func(ctx context.Context, t node.Transport) (*groupcomm.LegacyInfo, error) {
		return node.PostLegacyToken(ctx, d, t, access)
	})
	if err != nil {
		return nodeAdvice("post the access token to", at.coap, err)
	}
	story.postedLegacy(at.coap, info)
	t, dial, err := c.open(ctx, at, access, story)
	if err != nil {
		return err
	}
	member, err := node.NewLegacy(node.LegacyConfig{
		Dialect: d, Group: c.Group, Roles: roles, Info: info, WantKeys: c.Creds,
		PollEvery: c.Poll, Redial: dial, OnEvent: story.event, Log: log,
	}, t)
	if err != nil {
		return errors.Join(err, t.Close())
	}
	joinCtx, cancel := context.WithTimeout(ctx, nodeDialTimeout)
	defer cancel()
	if err := member.Join(joinCtx); err != nil {
		return errors.Join(nodeAdvice("join over", at.coaps, err), member.Close())
	}
	state, _ := member.State()
	story.joinedLegacy(state, d)
	return c.live(ctx, member, at, story, log, func() error {
		if err := member.Follow(ctx); ctx.Err() == nil {
			return err
		}
		return nil
	})
}
