//go:build race

package crash

// The race detector makes every handshake several times slower.
const (
	raceDetector  = true
	defaultRounds = 10
)
