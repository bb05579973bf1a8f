//go:build !long

package e2e

// talkKills is how often TestTalkKilled kills a node.
const talkKills = 8
