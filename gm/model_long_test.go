//go:build long

package gm

const (
	modelSeeds = 400
	modelSteps = 400
)
