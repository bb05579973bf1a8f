package oscore

// groupAAD is what the Additional Authenticated Data of one message of a group is
// made of. The first four are those of the request, also for a response; the
// others belong to the message itself.
//
// draft-ietf-core-oscore-groupcomm-28, Section 3.4.
type groupAAD struct {
	requestKID, requestPIV, requestGid []byte
	classI                             []byte // options of class I, encoded; normally none

	option     []byte // value of the OSCORE option of this message
	senderCred []byte
	gmCred     []byte
}

// arrayLen is the length of the encoded aad_array.
func (a *groupAAD) arrayLen(s *groupSuite) int {
	n := len(s.aadHead)
	for _, v := range [...][]byte{a.requestKID, a.requestPIV, a.classI, a.requestGid, a.option, a.senderCred, a.gmCred} {
		n += cborHeadLen(len(v)) + len(v)
	}
	return n
}

// appendArray writes the aad_array of nine elements.
func (a *groupAAD) appendArray(b []byte, s *groupSuite) []byte {
	b = append(b, s.aadHead...)
	b = appendCBORBytes(b, a.requestKID)
	b = appendCBORBytes(b, a.requestPIV)
	b = appendCBORBytes(b, a.classI)
	b = appendCBORBytes(b, a.requestGid)
	b = appendCBORBytes(b, a.option)
	b = appendCBORBytes(b, a.senderCred)
	return appendCBORBytes(b, a.gmCred)
}

// Heads of the two structures around the external_aad. The countersigned one is
// written over the encrypted one, so both end where the external_aad begins.
var (
	// RFC 9052, Section 5.3: [ "Encrypt0", empty protected header, external_aad ].
	encryptHead = []byte("\x83\x68Encrypt0\x40")
	// RFC 9338, Section 3.3: [ "CounterSignature0", empty protected header of the
	// COSE_Encrypt0, empty protected header of the countersignature, external_aad,
	// ciphertext ]. RFC 9338 leaves the third element out with abbreviated
	// countersignatures; every published vector and every known implementation of
	// Group OSCORE has it.
	countersignHead = [...][]byte{
		4: []byte("\x84\x71CounterSignature0\x40"),
		5: []byte("\x85\x71CounterSignature0\x40\x40"),
	}
)

// CountersignElements is how many elements the signed structure has: 5, as all
// implementations do, or 4, as RFC 9338, Section 3.3 has it when read literally.
// Both sides of a group must do the same.
const CountersignElements = 5

// aadFrame is a buffer with the external_aad of a message and room in front of it
// for the heads of both structures.
type aadFrame struct {
	b     []byte
	start int // of the external_aad
}

// set builds the external_aad of a message.
func (f *aadFrame) set(a *groupAAD, s *groupSuite) {
	f.start = len(countersignHead[CountersignElements])
	n := a.arrayLen(s)
	f.b = append(f.b[:0], countersignHead[CountersignElements]...)
	f.b = appendCBORHead(f.b, cborBytes, uint64(n))
	f.b = a.appendArray(f.b, s)
}

// encrypted gives the AAD of encryption, until the next call of a method.
func (f *aadFrame) encrypted() []byte {
	from := f.start - len(encryptHead)
	copy(f.b[from:], encryptHead)
	return f.b[from:]
}

// countersigned gives the bytes that a countersignature over the ciphertext
// covers, until the next call of a method.
func (f *aadFrame) countersigned(ciphertext []byte) []byte {
	copy(f.b, countersignHead[CountersignElements])
	end := len(f.b)
	f.b = appendCBORBytes(f.b, ciphertext)
	signed := f.b
	f.b = f.b[:end]
	return signed
}
