//go:build !long

package gm

// How much TestModel does: .ci/run long does more.
const (
	modelSeeds = 10
	modelSteps = 150
)
