package datagram

import "github.com/pion/logging"

// Quiet discards pion's log of a handshake over a [Pipe]: what a peer does wrong
// is its own affair, and what becomes of a handshake is said by whoever asked
// for it.
type Quiet struct{}

// NewLogger is of pion's LoggerFactory; what is logged goes nowhere.
func (Quiet) NewLogger(string) logging.LeveledLogger { return discard{} }

type discard struct{}

func (discard) Trace(string)          {}
func (discard) Tracef(string, ...any) {}
func (discard) Debug(string)          {}
func (discard) Debugf(string, ...any) {}
func (discard) Info(string)           {}
func (discard) Infof(string, ...any)  {}
func (discard) Warn(string)           {}
func (discard) Warnf(string, ...any)  {}
func (discard) Error(string)          {}
func (discard) Errorf(string, ...any) {}
