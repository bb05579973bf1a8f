//go:build long

package endpoint

func init() { shardCounts = []int{2, 3, 4, MaxShards} }
