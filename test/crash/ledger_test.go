package crash

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// ledger keeps what the gateway acknowledged or showed, over all its lives, and
// finds contradictions. It knows nothing that the gateway did not say: an
// operation that was cut off may have happened or not, and is told to it only
// as an attempt.
type ledger struct {
	mu      sync.Mutex
	round   int
	groups  map[string]*groupLedger
	gids    map[string]place             // by Gid in hex
	secrets map[[sha256.Size]byte]place  // by hash of the Master Secret
	wire    map[string][sha256.Size]byte // by kid and Partial IV of a message
	seen    int                          // messages on the wire
	bodies  [][]byte                     // of them, each once
	broken  []string
	journal []entry
}

type place struct {
	group   string
	version uint64
}

// groupLedger is what is known about one group.
type groupLedger struct {
	floor    uint64              // highest version that left the gateway
	rekeyed  uint64              // highest version acknowledged to the operator
	causes   uint64              // attempts that may each have caused one rekey
	versions map[uint64]material // by version
	holders  map[holding]string  // whose a Sender ID is under a Gid
	given    map[holding]string  // to whom it was given out under that Gid
	ended    map[string]string   // node names of memberships that are over, and why
	owed     uint64              // version that the ended memberships must lead to
}

// material is one version as far as it was seen.
type material struct {
	gid    string
	secret [sha256.Size]byte // of the Master Secret; zero: not seen
}

// holding is a Sender ID under a Gid, both in hex.
type holding struct{ gid, sid string }

// entry is one line of the journal.
type entry struct {
	at    time.Time
	round int
	group string
	text  string
}

func newLedger(groups ...string) *ledger {
	l := &ledger{groups: map[string]*groupLedger{}, gids: map[string]place{}, secrets: map[[sha256.Size]byte]place{}, wire: map[string][sha256.Size]byte{}}
	for _, g := range groups {
		l.groups[g] = &groupLedger{
			versions: map[uint64]material{}, holders: map[holding]string{}, given: map[holding]string{}, ended: map[string]string{},
		}
	}
	return l
}

func (l *ledger) startRound(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.round = n
}

// breach records a contradiction.
func (l *ledger) breach(group, format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.breachLocked(group, format, args...)
}

func (l *ledger) breachLocked(group, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	l.noteLocked(group, "BREACH: %s", text)
	l.broken = append(l.broken, fmt.Sprintf("round %d, group %s: %s", l.round, group, text))
}

// note adds a line to the journal, which is shown when something broke.
func (l *ledger) note(group, format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.noteLocked(group, format, args...)
}

func (l *ledger) noteLocked(group, format string, args ...any) {
	l.journal = append(l.journal, entry{time.Now(), l.round, group, fmt.Sprintf(format, args...)})
}

// breaches returns what broke so far.
func (l *ledger) breaches() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]string(nil), l.broken...)
}

// tail is the end of the journal of one group.
func (l *ledger) tail(group string, n int) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var lines []string
	for i := len(l.journal) - 1; i >= 0 && len(lines) < n; i-- {
		if e := l.journal[i]; e.group == group || e.group == "" {
			lines = append(lines, fmt.Sprintf("%s round %d %s", e.at.Format("05.000"), e.round, e.text))
		}
	}
	var b strings.Builder
	for i := len(lines) - 1; i >= 0; i-- {
		b.WriteString("  " + lines[i] + "\n")
	}
	return b.String()
}

// floor is the version below which nothing may be shown any more.
func (l *ledger) floor(group string) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.groups[group].floor
}

// attempt counts a request that may cause one rekey, whatever becomes of it.
func (l *ledger) attempt(group string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.groups[group].causes++
}

// current records that the gateway showed a version as the current one to a
// request that was sent when the floor was at since. secret is zero where it
// was not shown.
func (l *ledger) current(group string, since, version uint64, gid groupcomm.Gid, secret cose.Secret) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if version < since {
		l.breachLocked(group, "version %d is shown after version %d was", version, since)
	}
	l.showLocked(group, version, gid, secret)
}

// shows records material that a member got, current or not.
func (l *ledger) shows(group string, version uint64, gid groupcomm.Gid, secret cose.Secret) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.showLocked(group, version, gid, secret)
}

func (l *ledger) showLocked(group string, version uint64, gid groupcomm.Gid, secret cose.Secret) {
	g := l.groups[group]
	m := material{gid: gid.String()}
	if !secret.IsZero() {
		m.secret = sha256.Sum256(secret.Bytes())
		switch p, ok := l.secrets[m.secret]; {
		case !ok:
			l.secrets[m.secret] = place{group, version}
		case p != place{group, version}:
			l.breachLocked(group, "version %d has the Master Secret of version %d of %s", version, p.version, p.group)
		}
	}
	switch p, ok := l.gids[m.gid]; {
	case !ok:
		l.gids[m.gid] = place{group, version}
	case p != place{group, version}:
		l.breachLocked(group, "Gid %s is that of version %d, and that of version %d of %s", m.gid, version, p.version, p.group)
	}
	old, ok := g.versions[version]
	switch {
	case !ok:
		l.noteLocked(group, "version %d has Gid %s", version, m.gid)
		g.versions[version] = m
	case old.gid != m.gid:
		l.breachLocked(group, "version %d has two Gids, %s and %s", version, old.gid, m.gid)
	case m.secret == [sha256.Size]byte{}:
	case old.secret == [sha256.Size]byte{}:
		g.versions[version] = m
	case old.secret != m.secret:
		l.breachLocked(group, "version %d has two Master Secrets", version)
	}
	g.floor = max(g.floor, version)
	if g.floor > g.causes {
		l.breachLocked(group, "version %d, but only %d requests could cause a rekey", g.floor, g.causes)
	}
}

// rekeyed records that the operator was told of a rekey, asked for when the
// floor was at since.
func (l *ledger) rekeyed(group string, since, version uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	g := l.groups[group]
	l.noteLocked(group, "operator was told of version %d", version)
	if version <= since || version <= g.rekeyed {
		l.breachLocked(group, "a rekey gave version %d, but %d was there when it was asked for", version, max(since, g.rekeyed))
	}
	if version > g.causes {
		l.breachLocked(group, "version %d, but only %d requests could cause a rekey", version, g.causes)
	}
	g.rekeyed = max(g.rekeyed, version)
	g.floor = max(g.floor, version)
}

// gave records that a Sender ID was given out to a membership in its join under
// a Gid. who tells memberships apart: another one after every assignment.
func (l *ledger) gave(group string, gid groupcomm.Gid, sid groupcomm.SenderID, who string) {
	if sid == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	h := holding{gid.String(), sid.String()}
	l.noteLocked(group, "%s was given Sender ID %q under Gid %s", who, h.sid, h.gid)
	g := l.groups[group]
	if old, ok := g.given[h]; ok && old != who {
		l.breachLocked(group, "Sender ID %q was given out twice under Gid %s: to %s and to %s", h.sid, h.gid, old, who)
	}
	g.given[h] = who
	l.holdsLocked(g, group, h, who)
}

// holds records that a membership has a Sender ID under a Gid.
func (l *ledger) holds(group string, gid groupcomm.Gid, sid groupcomm.SenderID, who string) {
	if sid == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.holdsLocked(l.groups[group], group, holding{gid.String(), sid.String()}, who)
}

func (l *ledger) holdsLocked(g *groupLedger, group string, h holding, who string) {
	if old, ok := g.holders[h]; ok && old != who {
		l.breachLocked(group, "Sender ID %q under Gid %s is that of %s and that of %s", h.sid, h.gid, old, who)
		return
	}
	g.holders[h] = who
}

// over records that a membership is known to have ended, by an acknowledgement
// or later by a refusal; the end was asked for when the floor was at since. A
// rekey is owed from now on.
func (l *ledger) over(group, node, why string, since uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	g := l.groups[group]
	l.noteLocked(group, "node %s: %s, the version was at least %d", node, why, since)
	g.ended[node] = why
	g.owed = max(g.owed, since+1)
}

// owed is the version that acknowledged ends of memberships lead to.
func (l *ledger) owed(group string) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.groups[group].owed
}

// published records a rekey message that passed the broker, or was multicast: under one key and
// one nonce there may be one message only, to the byte.
func (l *ledger) published(payload []byte) {
	m, err := cose.DecodeEncrypt0(payload)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seen++
	if err != nil || len(m.KID()) == 0 || len(m.Unprotected.PartialIV) == 0 {
		l.breachLocked("", "a published rekey message is none: %v", err)
		return
	}
	// The Base IV belongs to the key, so the Partial IV tells nonces apart.
	nonce := hex.EncodeToString(m.KID()) + "/" + hex.EncodeToString(m.Unprotected.PartialIV)
	sum := sha256.Sum256(payload)
	if old, ok := l.wire[nonce]; ok && old != sum {
		l.breachLocked("", "two messages under key and nonce %s", nonce)
	}
	if _, ok := l.wire[nonce]; !ok {
		l.bodies = append(l.bodies, payload)
	}
	l.wire[nonce] = sum
}

// counts returns how many MQTT messages passed, and how many of them differ.
func (l *ledger) counts() (messages, different int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.seen, len(l.wire)
}

// everything returns all messages that ever passed.
func (l *ledger) everything() [][]byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([][]byte(nil), l.bodies...)
}

// unbounded says that a group is rekeyed by its schedule too, which nobody asks
// for.
func (l *ledger) unbounded(group string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.groups[group].causes = 1 << 62
}
