package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"time"
)

// The number of a start (docs/protocol.md, Section 10): max(last + 1, minutes since
// 2025-01-01 UTC), 24 bits. It is on disk before anything is read for use; a crash
// after that costs a number. The minutes move a folder
// forward that was put back from a copy together with its file, and the file
// one whose clock was set back or stands still. More than a year ahead of the
// last number nothing is restored: either the clock is wrong, or nobody waits
// for the sessions any more.
//
//	"groupgate boot 1\n" | boot (4 bytes) | generation (8 bytes) | CRC-32C (4 bytes)
//
// The generation is that of the log which this start begins. Files that end
// more than one below it are an older copy: nothing is restored either.
//
// A process may take further numbers (Reserve); then the file has the last of them.
//
// The file has two of these, in blocks of their own, and the greater number counts.
// The other is overwritten where it is: on a full disk there is no room for a new
// file, and without a number a start would have to give all sessions up. Should one be
// damaged, by a crash while it was written or by the disk afterwards, the numbers
// go on behind all that it may have had (bootDamaged). A file of the time before has
// one, and is replaced as a whole.
const (
	bootName  = "boot"
	bootMagic = "groupgate boot 1\n"
	bootSize  = len(bootMagic) + 4 + 8 + 4
	bootPlace = 4096 // bytes from one to the other
	bootFile  = bootPlace + bootSize

	maxBoot     = 1<<24 - 1
	bootYear    = 366 * 24 * 60
	bootDamaged = 1 << 16
)

var bootZero = time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

type bootMark struct {
	boot uint32
	gen  uint64
}

func (m bootMark) encode() []byte {
	b := append(make([]byte, 0, bootSize), bootMagic...)
	b = binary.BigEndian.AppendUint32(b, m.boot)
	b = binary.BigEndian.AppendUint64(b, m.gen)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

var errBoot = errors.New("journal: the file \"boot\" is not what was written")

// decodeBoot reads exactly what encode writes.
func decodeBoot(b []byte) (m bootMark, err error) {
	if len(b) != bootSize || string(b[:len(bootMagic)]) != bootMagic ||
		crc32.Checksum(b[:bootSize-4], castagnoli) != binary.BigEndian.Uint32(b[bootSize-4:]) {
		return m, errBoot
	}
	m.boot = binary.BigEndian.Uint32(b[len(bootMagic):])
	m.gen = binary.BigEndian.Uint64(b[len(bootMagic)+4:])
	if m.boot > maxBoot {
		return m, errBoot
	}
	return m, nil
}

// decodeBoots reads the file: the mark that counts, and the place to overwrite next;
// -1 where the file is to be replaced.
func decodeBoots(b []byte) (m bootMark, place int64, err error) {
	if len(b) == bootSize {
		m, err = decodeBoot(b)
		return m, -1, err
	}
	if len(b) != bootFile {
		return m, -1, errBoot
	}
	first, err1 := decodeBoot(b[:bootSize])
	second, err2 := decodeBoot(b[bootPlace:])
	switch {
	case err1 != nil && err2 != nil:
		return m, -1, errBoot
	case err1 != nil:
		second.boot += bootDamaged
		return second, 0, nil
	case err2 != nil:
		first.boot += bootDamaged
		return first, int64(bootPlace), nil
	case first.boot > second.boot:
		return first, int64(bootPlace), nil
	}
	return second, 0, nil
}

// nextBoot is the number after last; known is false without one. fresh says
// that nothing may be restored.
func nextBoot(last uint32, known bool, now time.Time) (boot uint32, fresh bool, err error) {
	minutes := int64(now.Sub(bootZero) / time.Minute)
	minutes = max(0, minutes)
	if !known {
		return uint32(min(minutes, maxBoot)), true, nil
	}
	ahead := minutes > int64(last)+bootYear
	next := max(int64(last)+1, minutes)
	if ahead && minutes > maxBoot/2 {
		next = int64(last) + 1 // a clock decades ahead must not use the numbers up
	}
	if next > maxBoot {
		return 0, true, ErrStarts
	}
	return uint32(next), ahead, nil
}

// start takes the number of this start and has it on disk. stale says why
// nothing of what is there may be restored. newest is the generation of the
// newest file, 0 for none.
func (j *Journal) start(newest uint64) (boot uint32, stale string, err error) {
	var last bootMark
	known := true
	j.place = -1
	b, err := j.fs.read(bootName, int64(bootFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		known, stale = false, "the number of the last start is missing"
	case err != nil && !errors.Is(err, errLarge):
		return 0, "", fmt.Errorf("journal: %w", err)
	default:
		if last, j.place, err = decodeBoots(b); err != nil {
			// No crash leaves it so.
			known, stale = false, "the number of the last start is unreadable"
		}
	}
	boot, fresh, err := nextBoot(last.boot, known, j.o.now())
	switch {
	case err != nil:
		return 0, "", err
	case !known:
	case fresh:
		stale = "the clock is more than a year ahead of the last start"
	case newest+1 < last.gen:
		stale = "the files are older than the last start: were they put back from a copy?"
	}
	j.mark = bootMark{boot, newest + 1}
	if err := j.writeBoot(j.mark); err != nil {
		return 0, "", fmt.Errorf("journal: number of this start: %w", err)
	}
	return boot, stale, nil
}

// writeBoot has a mark on disk in the place of the last but one.
func (j *Journal) writeBoot(m bootMark) error {
	if j.place < 0 {
		return j.replaceBoot(m)
	}
	if err := j.fs.overwrite(bootName, j.place, m.encode()); err != nil {
		return err
	}
	j.place = int64(bootPlace) - j.place
	return nil
}

// replaceBoot makes the file.
func (j *Journal) replaceBoot(m bootMark) error {
	b := make([]byte, bootFile)
	copy(b, m.encode())
	copy(b[bootPlace:], m.encode())
	f, err := j.fs.create(bootName + ".new")
	if err == nil {
		_, err = f.Write(b)
		if err == nil {
			err = f.Sync()
		}
		err = errors.Join(err, f.Close())
	}
	if err == nil {
		err = j.fs.rename(bootName+".new", bootName)
	}
	if err == nil {
		err = j.fs.sync()
	}
	if err == nil {
		j.place = 0
	}
	return err
}

// Reserve takes the numbers of starts up to n for this one: when it returns nil it
// is on disk that the next start has a greater one.
func (j *Journal) Reserve(n uint32) error {
	j.write.Lock()
	defer j.write.Unlock()
	j.mu.Lock()
	closed := j.closed
	j.mu.Unlock()
	switch {
	case closed:
		return ErrClosed
	case n > maxBoot:
		return ErrStarts
	case n <= j.mark.boot:
		return nil
	}
	m := bootMark{n, j.mark.gen}
	if err := j.writeBoot(m); err != nil {
		return fmt.Errorf("journal: reserve numbers of starts: %w", err)
	}
	j.mark = m
	return nil
}
