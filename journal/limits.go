package journal

import "time"

const (
	// commitEvery is how long records wait for others when nobody waits for
	// them: what a crash may take of them.
	commitEvery = 200 * time.Millisecond

	// flushAt is how many bytes of records are written at once.
	flushAt = 256 << 10

	// spareMost is the largest buffer that is kept for the next records.
	spareMost = 4 << 20

	// compactAt is how large a log grows, in bytes, before a snapshot takes its
	// place; or twice the snapshot, where that is more.
	compactAt = 4 << 20

	// retryEvery is when a snapshot is tried after the disk failed.
	retryEvery = 10 * time.Second

	// MaxRecord bounds one record, maxFrame what is sealed in one piece, in
	// bytes.
	MaxRecord = 16 << 10
	maxFrame  = 256 << 10

	// maxFiles bounds the files looked at: each start leaves two at most until
	// its first snapshot.
	maxFiles = 4096
)
