//go:build race

package crash

// The race detector makes every handshake several times slower.
const (
	raceDetector      = true
	stretch           = 5 // of the gateway's lives
	defaultRounds     = 10
	defaultTreeRounds = 2
)
