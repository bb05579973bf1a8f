//go:build !race && long

package crash

const (
	raceDetector      = false
	stretch           = 1 // of the gateway's lives
	defaultRounds     = 2000
	defaultTreeRounds = 600
)
