package plugin

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/seed4911071e/groupgate/bridge"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/secure"
	"github.com/seed4911071e/groupgate/coap/serve"
	"github.com/seed4911071e/groupgate/endpoint"
	"github.com/seed4911071e/groupgate/journal"
)

// Sessions and observations of the gateway's own endpoint outlive it in a journal
// in the data folder (docs/endpoint.md). Endpoint, server core and the layer of OSCORE
// each write records of their own and know nothing of the file; here they meet.

// sessionsDir is the folder of the journal, in the data folder.
const sessionsDir = "sessions"

// Whose a record of the journal is.
const (
	ofEndpoint byte = 'e'
	ofServe    byte = 's'
	ofSecure   byte = 'o'
	ofKeys     byte = 'k' // keymarks.go
)

// stream is the journal as one owner of records sees it.
type stream struct {
	*journal.Journal
	kind byte
}

func (s stream) Append(rec []byte) { s.Journal.Append(s.kind, rec) }

// Keeps: those who publish to other topics do not know them after a restart.
func (s stream) Keeps(topic string) bool { return bridge.Publishes(topic) }

var (
	_ endpoint.Journal = stream{}
	_ serve.Keeper     = stream{}
	_ secure.Keeper    = stream{}
)

// kept is what a journal brings back.
type kept struct {
	peers     endpoint.Recovery
	observers serve.Recovery
	protected secure.Recovery
	marks     map[string]keyMark
	dropped   int // sessions, by marks
}

func (k *kept) apply(kind byte, rec []byte) error {
	switch kind {
	case ofEndpoint:
		return k.peers.Apply(rec)
	case ofServe:
		return k.observers.Apply(rec)
	case ofSecure:
		return k.protected.Apply(rec)
	case ofKeys:
		return k.applyMark(rec)
	}
	return fmt.Errorf("record of kind %d", kind)
}

// keep opens the journal and brings back what is in it; nil where nothing is
// kept. It is called before anything is served, with the data folder locked. A
// journal that cannot be used stops nothing: nodes shake hands anew.
func (g *Gateway) keep(ctx context.Context, layer *secure.Layer) (*journal.Journal, []bridge.Observer) {
	dir := filepath.Join(g.cfg.DataDir, sessionsDir)
	if g.coaps == nil && g.plain == nil || !g.cfg.Endpoint.PersistSessions {
		if err := journal.Erase(dir); err != nil {
			g.log.Warn("sessions that were kept earlier could not be removed", "folder", dir, "err", err)
		}
		return nil, nil
	}
	log, marks := g.log.With("part", "sessions"), g.keyMarks()
	began := time.Now()
	open := func() (j *journal.Journal, k *kept, found journal.Found, err error) {
		k = &kept{}
		j, found, err = journal.Open(journal.Options{
			Dir: dir, Key: g.cfg.Seal.Key.Bytes(), Log: log, Registerer: g.registry,
			Dump: func(emit func(byte, []byte)) bool {
				for identity, m := range marks {
					emit(ofKeys, markRecord(identity, m))
				}
				whole := g.coaps == nil || g.coaps.Dump(func(rec []byte) { emit(ofEndpoint, rec) })
				layer.Dump(func(rec []byte) { emit(ofSecure, rec) })
				// The core is the last and is frozen before anything is given up: it tells for all.
				return g.server.Dump(func(rec []byte) { emit(ofServe, rec) }) && whole
			},
		}, k.apply)
		return j, k, found, err
	}
	j, k, found, err := open()
	if err != nil && !isIO(err) {
		log.Error("the sessions that were kept cannot be used: nodes shake hands anew", "folder", dir, "err", err)
		if err = journal.Erase(dir); err == nil {
			j, k, found, err = open()
		}
	}
	if err != nil {
		log.Error("the sessions that were kept cannot be reached, and those of this process will not outlive it; is the disk full, or read-only?",
			"folder", dir, "hint", "make the disk work and start the gateway anew: what was kept is still there", "err", err)
		return nil, nil
	}
	if found.Stale != "" {
		log.Warn("the sessions that were kept are given up: nodes shake hands anew", "because", found.Stale)
	}
	for _, rec := range k.rekeyed(marks) {
		stream{j, ofKeys}.Append(rec)
	}
	if k.dropped > 0 {
		log.Info("sessions of pre-shared keys that were replaced or removed are over", "sessions", k.dropped)
	}
	var observing []bridge.Observer
	var observations int
	k.observers.Start = j.Boot()
	restore := func(l coap.Link) {
		if topics := g.server.Restore(&k.observers, l); len(topics) > 0 {
			observing = append(observing, bridge.Observer{Peer: l.Peer(), Topics: topics})
			observations += len(topics)
		}
	}
	sessions := map[coap.LinkID]endpoint.Peer{}
	if g.coaps != nil {
		for _, p := range g.coaps.Restore(stream{j, ofEndpoint}, j.Boot(), &k.peers) {
			front{g}.opened(p)
			sessions[p.Peer().Link] = p
			restore(p)
		}
	}
	protected, err := layer.Restore(ctx, &k.protected, func(c secure.Carrier) coap.Link {
		if p := sessions[c.Link]; p != nil {
			return p
		}
		if c.Addr.IsValid() && g.plain != nil {
			if p := g.plain.Reach(c.Addr, c.Home); p != nil {
				return p
			}
		}
		return nil
	})
	if err != nil {
		log.Error("observations under OSCORE were lost: their nodes ask again", "err", err)
	}
	for _, l := range protected {
		restore(l)
	}
	layer.Keep(stream{j, ofSecure})
	g.server.Keep(stream{j, ofServe})
	log.Info("sessions restored", "sessions", len(sessions), "contexts", len(protected), "observations", observations, "start", j.Boot(),
		"records", found.Records, "torn_bytes", found.Torn, "took", time.Since(began).Round(time.Millisecond))
	return j, observing
}

// isIO says that a journal could not be opened because of the disk, not because
// of what is on it.
func isIO(err error) bool {
	return !errors.Is(err, journal.ErrUnreadable) && !errors.Is(err, journal.ErrStarts)
}

// freeze has what is known of sessions written as it is now: what ends with the
// process goes on after its next start.
func (g *Gateway) freeze() {
	if g.coaps != nil {
		g.coaps.Keep()
	}
	if r := g.rooms.Load(); r != nil {
		r.secure.Freeze()
	}
	g.server.Freeze()
}
