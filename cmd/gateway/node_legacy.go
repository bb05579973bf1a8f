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
	info, err := c.postLegacy(ctx, d, at, access)
	if err != nil {
		return nodeAdvice("post the access token to", at.coap, err)
	}
	story.postedLegacy(at.coap, info)

	dial := c.dialer(at, access)
	t, err := dial(ctx)
	if err != nil {
		return nodeAdvice("open a DTLS association with", at.coaps, err)
	}
	story.associated(at.coaps, access)

	member, err := node.NewLegacy(node.LegacyConfig{
		Dialect: d, Group: c.Group, Roles: roles, Info: info, WantKeys: c.Creds,
		PollEvery: c.Poll, Redial: dial, OnEvent: story.event, Log: log,
	}, t)
	if err != nil {
		return errors.Join(err, t.Close())
	}
	defer func() {
		if err := member.Close(); err != nil {
			log.Debug("closing failed", "err", err)
		}
	}()
	joinCtx, cancel := context.WithTimeout(ctx, nodeDialTimeout)
	defer cancel()
	if err := member.Join(joinCtx); err != nil {
		return nodeAdvice("join over", at.coaps, err)
	}
	state, _ := member.State()
	story.joinedLegacy(state, d)
	leave := func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), nodeLeaveTime)
		defer cancel()
		return member.Leave(ctx)
	}
	if c.Once {
		return leave()
	}
	story.waiting(0, false)
	if err := member.Follow(ctx); err != nil && ctx.Err() == nil {
		return nodeAdvice("follow the group at", at.coaps, err)
	}
	if c.LeaveOnExit {
		return leave()
	}
	story.stays()
	return nil
}

func (c *nodeJoinCmd) postLegacy(ctx context.Context, d groupcomm.Interface, at nodeAddrs, access *node.Access) (*groupcomm.LegacyInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, nodeDialTimeout)
	defer cancel()
	t, err := node.DialUDP(ctx, at.coap)
	if err != nil {
		return nil, err
	}
	info, err := node.PostLegacyToken(ctx, d, t, access)
	return info, errors.Join(err, t.Close())
}
