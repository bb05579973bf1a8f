package journal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// A file is a header and frames.
//
//	header  "ggjrnl1\n" | kind (1 byte) | generation (8 bytes) | boot (4 bytes) | salt (24 bytes) | CRC-32C (4 bytes)
//	frame   length of the box (4 bytes) | CRC-32C of the box (4 bytes) | box
//
// A box is AES-256-GCM under a key that HKDF-SHA-256 draws from the sealing key
// and the salt; its nonce is the number of the frame in the file, its additional
// data the header. No file is ever appended to after it was closed, and each
// has a salt of its own, so no nonce is used twice under a key. The checksum
// tells what a crash or a disk damaged from what somebody changed, or another
// key sealed.
//
// What a box holds begins with its kind: records, or the end of a snapshot,
// without which a snapshot does not count. A record is its length, as a uvarint
// in its shortest form, its kind, and its bytes.
const (
	fileMagic  = "ggjrnl1\n"
	headerSize = len(fileMagic) + 1 + 8 + 4 + saltSize + 4
	saltSize   = 24

	kindLog      = 1
	kindSnapshot = 2

	frameHeader  = 8
	frameRecords = 1
	frameEnd     = 2
	tagSize      = 16

	labelFile = "groupgate journal file 1"
)

var (
	errHeader = errors.New("journal: no header of a journal file")
	errFrame  = errors.New("journal: frame is incomplete or damaged")
	errSeal   = errors.New("journal: frame does not open: it was changed, or sealed under another key")
	errRecord = errors.New("journal: malformed record")
)

type header struct {
	kind uint8
	gen  uint64
	boot uint32
	salt [saltSize]byte
}

func (h header) encode() []byte {
	b := append(make([]byte, 0, headerSize), fileMagic...)
	b = append(b, h.kind)
	b = binary.BigEndian.AppendUint64(b, h.gen)
	b = binary.BigEndian.AppendUint32(b, h.boot)
	b = append(b, h.salt[:]...)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func decodeHeader(b []byte) (h header, err error) {
	if len(b) < headerSize || string(b[:len(fileMagic)]) != fileMagic ||
		crc32.Checksum(b[:headerSize-4], castagnoli) != binary.BigEndian.Uint32(b[headerSize-4:]) {
		return h, errHeader
	}
	b = b[len(fileMagic):]
	h.kind, h.gen, h.boot = b[0], binary.BigEndian.Uint64(b[1:]), binary.BigEndian.Uint32(b[9:])
	copy(h.salt[:], b[13:])
	if h.kind != kindLog && h.kind != kindSnapshot || h.boot > maxBoot {
		return h, errHeader
	}
	return h, nil
}

// aead is the cipher of a file.
func aead(key []byte, h header) cipher.AEAD {
	k, err := hkdf.Key(sha256.New, key, h.salt[:], labelFile, KeySize)
	if err != nil {
		panic("journal: internal error: " + err.Error())
	}
	block, err := aes.NewCipher(k)
	if err != nil {
		panic("journal: internal error: " + err.Error())
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		panic("journal: internal error: " + err.Error())
	}
	return gcm
}

func frameNonce(n uint64) []byte {
	return binary.BigEndian.AppendUint64(make([]byte, 4, 12), n)
}

// writer writes one file.
type writer struct {
	f      file
	aead   cipher.AEAD
	header []byte
	frames uint64
	size   int64
	box    []byte
}

// create begins a file; its header is on disk, and its name.
func (j *Journal) create(name string, kind uint8, gen uint64) (*writer, error) {
	h := header{kind: kind, gen: gen, boot: j.boot}
	_, _ = rand.Read(h.salt[:]) // never fails (crypto/rand)
	f, err := j.fs.create(name)
	if err != nil {
		return nil, err
	}
	w := &writer{f: f, aead: aead(j.o.Key, h), header: h.encode(), size: int64(headerSize)}
	if _, err = f.Write(w.header); err == nil {
		err = w.sync()
	}
	if err == nil {
		err = j.fs.sync()
	}
	if err != nil {
		_ = f.Close() // the first error says it
		_ = j.fs.remove(name)
		return nil, err
	}
	return w, nil
}

// records writes records, in as many frames as it takes.
func (w *writer) records(b []byte) error {
	for len(b) > 0 {
		n := 0
		for n < len(b) {
			size, l := binary.Uvarint(b[n:])
			next := n + l + int(size)
			if n > 0 && next > maxFrame {
				break
			}
			n = next
		}
		if err := w.frame(frameRecords, b[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// end completes a snapshot.
func (w *writer) end() error { return w.frame(frameEnd, nil) }

func (w *writer) frame(kind byte, body []byte) error {
	b := append(w.box[:0], make([]byte, frameHeader)...)
	b = append(b, kind)
	b = append(b, body...)
	box := w.aead.Seal(b[frameHeader:frameHeader], frameNonce(w.frames), b[frameHeader:], w.header)
	b = append(b[:frameHeader], box...)
	w.box = b
	w.frames++
	binary.BigEndian.PutUint32(b, uint32(len(box)))
	binary.BigEndian.PutUint32(b[4:], crc32.Checksum(box, castagnoli))
	if _, err := w.f.Write(b); err != nil {
		return err
	}
	w.size += int64(len(b))
	return nil
}

func (w *writer) sync() error { return w.f.Sync() }

func appendRecord(b []byte, kind byte, rec []byte) []byte {
	b = binary.AppendUvarint(b, uint64(1+len(rec)))
	b = append(b, kind)
	return append(b, rec...)
}

// splitRecords gives the records of a frame to apply.
func splitRecords(b []byte, apply func(byte, []byte) error) (n int, err error) {
	for len(b) > 0 {
		size, l := binary.Uvarint(b)
		if l <= 0 || l > 1 && b[l-1] == 0 || size < 1 || size > 1+MaxRecord || size > uint64(len(b)-l) {
			return n, errRecord
		}
		if err := apply(b[l], b[l+1:l+int(size):l+int(size)]); err != nil {
			return n, err
		}
		n++
		b = b[l+int(size):]
	}
	return n, nil
}

// decodeFile gives the records of a file to apply. whole is how many bytes of it
// are good; what follows is damaged (errFrame) or strange (errSeal). complete
// says that a snapshot has its end.
func decodeFile(b, key []byte, kind uint8, gen uint64, apply func(byte, []byte) error) (n int, whole int64, complete bool, err error) {
	h, err := decodeHeader(b)
	if err != nil {
		return 0, 0, false, err
	}
	if h.kind != kind || h.gen != gen {
		return 0, 0, false, fmt.Errorf("%w: it belongs under another name", errHeader)
	}
	gcm := aead(key, h)
	head := b[:headerSize]
	at := headerSize
	var plain []byte
	for frame := uint64(0); at < len(b); frame++ {
		rest := b[at:]
		if len(rest) < frameHeader {
			return n, int64(at), false, errFrame
		}
		size := int(binary.BigEndian.Uint32(rest))
		if size < 1+tagSize || size > 1+maxFrame+MaxRecord+tagSize+16 || size > len(rest)-frameHeader {
			return n, int64(at), false, errFrame
		}
		box := rest[frameHeader : frameHeader+size]
		if crc32.Checksum(box, castagnoli) != binary.BigEndian.Uint32(rest[4:]) {
			return n, int64(at), false, errFrame
		}
		if plain, err = gcm.Open(plain[:0], frameNonce(frame), box, head); err != nil {
			return n, int64(at), false, errSeal
		}
		at += frameHeader + size
		switch {
		case plain[0] == frameRecords:
			m, err := splitRecords(plain[1:], apply)
			n += m
			if err != nil {
				return n, int64(at), false, err
			}
		case plain[0] == frameEnd && len(plain) == 1 && kind == kindSnapshot:
			if at != len(b) {
				return n, int64(at), false, errFrame
			}
			return n, int64(at), true, nil
		default:
			return n, int64(at), false, errRecord
		}
	}
	return n, int64(at), kind == kindLog, nil
}
