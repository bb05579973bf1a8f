package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/node"
	"github.com/seed4911071e/groupgate/oscore"
)

// nodeState is the file of --state: the membership of a simulated node, and what its
// group Security Contexts must not lose. nil is none.
type nodeState struct {
	path  string
	group string
	file  *oscore.GroupFile
	log   *slog.Logger

	mu     sync.Mutex
	member *node.Member // nil: not joined yet
	access *node.Access
}

// openState opens the file of --state, where there is one.
func (c *nodeJoinCmd) openState(log *slog.Logger) (*nodeState, error) {
	if c.State == "" {
		return nil, nil
	}
	if dialect, _ := groupcomm.InterfaceByName(c.Interface); dialect != groupcomm.Current {
		return nil, errors.New("--state is for --interface current: nodes of the older drafts join anew")
	}
	if c.MQTT || c.Multicast != "" {
		return nil, errors.New("--state goes with neither --mqtt nor --rekey-multicast: what a node needs for them comes with a join, so that such a node joins anew")
	}
	file, err := oscore.OpenGroupFile(c.State)
	if err != nil {
		return nil, fmt.Errorf("--state: %w", err)
	}
	return &nodeState{path: c.State, group: c.Group, file: file, log: log}, nil
}

func (s *nodeState) close() {
	if s == nil {
		return
	}
	if err := s.file.Close(); err != nil {
		s.log.Warn("closing the state file failed", "file", s.path, "err", err)
	}
}

// store is for the traffic of the member.
func (s *nodeState) store() oscore.GroupStore {
	if s == nil {
		return nil
	}
	return s.file
}

// keptMember is the note in the file.
type keptMember struct {
	group  string
	access *node.Access
	saved  []byte // as node.Config has it
}

// Labels of the note. What is written never changes its meaning.
const (
	noteGroup  = 1
	noteAccess = 2
	noteSaved  = 3
)

// kept is the membership to go on with; nil when there is none.
func (s *nodeState) kept() (*keptMember, error) {
	if s == nil || len(s.file.Note()) == 0 {
		return nil, nil
	}
	k, err := readKept(s.file.Note())
	if err != nil {
		return nil, withHint(fmt.Errorf("--state: %s: %w", s.path, err), "to join anew, remove it")
	}
	return k, nil
}

func readKept(note []byte) (*keptMember, error) {
	in, err := cose.DecodeMap(note)
	if err != nil {
		return nil, errors.New("the kept membership is damaged")
	}
	group, ok1, err1 := in.Text(noteGroup)
	access, ok2, err2 := in.Bytes(noteAccess)
	saved, ok3, err3 := in.Bytes(noteSaved)
	if errors.Join(err1, err2, err3) != nil || !ok1 || !ok2 || !ok3 {
		return nil, errors.New("the kept membership is damaged")
	}
	k := &keptMember{group: group, saved: saved}
	k.access, err = node.DecodeAccess(access)
	return k, err
}

// has says whose membership is kept from now on, and keeps it.
func (s *nodeState) has(m *node.Member, access *node.Access) error {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	s.member, s.access = m, access
	s.mu.Unlock()
	return s.save()
}

// save makes the membership durable, or that there is none any more.
func (s *nodeState) save() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.member == nil {
		return nil
	}
	var note []byte
	if saved := s.member.Save(); saved != nil {
		note = cose.MustMarshal(map[int64]any{noteGroup: s.group, noteAccess: s.access.Encode(), noteSaved: saved})
	}
	if err := s.file.SetNote(note); err != nil {
		return fmt.Errorf("--state: keep the membership: %w", err)
	}
	return nil
}

// forget has the next start join anew. The sequence numbers stay.
func (s *nodeState) forget() {
	if err := s.file.SetNote(nil); err != nil {
		s.log.Warn("the membership that is over is still in the state file", "file", s.path, "err", err)
	}
}

// hearing saves the membership at every event before hear is told.
func (s *nodeState) hearing(hear func(node.Event)) func(node.Event) {
	if s == nil {
		return hear
	}
	return func(ev node.Event) {
		if err := s.save(); err != nil {
			s.log.Warn("the membership is not kept: after a restart the node asks for what it missed", "err", err)
		}
		hear(ev)
	}
}

// begin makes the node a member: with the membership that state keeps, or by a new
// token and a join.
func (c *nodeJoinCmd) begin(
	ctx context.Context, at nodeAddrs, client node.Client, roles groupcomm.Roles, state *nodeState,
	story *nodeStory, hear func(node.Event), log *slog.Logger,
) (*node.Member, error) {
	hear = state.hearing(hear)
	kept, err := state.kept()
	if err != nil {
		return nil, err
	}
	if kept != nil {
		if until := kept.access.ExpiresAt; until.IsZero() || time.Now().Before(until) {
			return c.resume(ctx, at, roles, state, kept, story, hear, log)
		}
		log.Warn("the access token of the kept membership has expired: joining anew", "file", state.path)
		state.forget()
	}
	access, err := c.token(ctx, at, client, roles)
	if err != nil {
		return nil, nodeAdvice("get an access token from", at.coaps, err)
	}
	story.token(at.coaps, client.Identity, access)
	m, err := c.enter(ctx, at, access, roles, story, hear, log)
	if err != nil {
		return nil, err
	}
	if err := state.has(m, access); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// resume goes on with a membership that was kept, and asks what became of it.
func (c *nodeJoinCmd) resume(
	ctx context.Context, at nodeAddrs, roles groupcomm.Roles, state *nodeState, kept *keptMember,
	story *nodeStory, hear func(node.Event), log *slog.Logger,
) (*node.Member, error) {
	if kept.group != c.Group {
		return nil, fmt.Errorf("--state: %s keeps a membership in %q: use another file for another one", state.path, kept.group)
	}
	if (kept.access.Material != nil) != c.OSCORE || (kept.access.PrivateKey != nil) != c.RPK {
		return nil, fmt.Errorf("--state: the membership in %s goes with the same --oscore or --rpk as before: use another file for another one", state.path)
	}
	anew := fmt.Sprintf("to join anew, remove %s", state.path)
	dial := c.dialer(at, kept.access)
	t, err := dial(ctx)
	if err != nil {
		return nil, withHint(nodeAdvice("open an association with", c.over(at), err), anew)
	}
	cfg, err := c.memberConfig(roles, dial, hear, log)
	if err != nil {
		return nil, errors.Join(err, t.Close())
	}
	cfg.Saved = kept.saved
	m, err := node.New(cfg, t)
	if err != nil {
		return nil, errors.Join(withHint(err, anew), t.Close())
	}
	if err := state.has(m, kept.access); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	was, _ := m.State()
	story.resumed(was, state.path)
	ctx, cancel := context.WithTimeout(ctx, nodeDialTimeout)
	defer cancel()
	if err := m.Poll(ctx); err != nil {
		if errors.Is(err, node.ErrUnauthorized) {
			state.forget()
		}
		return nil, errors.Join(nodeAdvice("go on with the membership at", c.over(at), err), m.Close())
	}
	return m, nil
}
