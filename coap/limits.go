package coap

// Values of RFC 7252.
const (
	maxToken = 8 // Section 3: TKL 9 to 15 are reserved

	// maxOptionNumber and maxOptionLength follow from the 16-bit extended form
	// of Section 3.1.
	maxOptionNumber = 0xffff
	maxOptionLength = 0xffff + 269
)

// Our own bounds.
const (
	// maxOptions bounds the work that one datagram causes: options of length
	// zero cost the sender a byte each and us a slot of 32. A path of ten
	// segments with ten query arguments uses a third of it.
	maxOptions = 64

	// maxDiagnostic bounds the deliberate text in an error, in bytes, so that
	// an error never needs a second block on a constrained link.
	maxDiagnostic = 200

	// maxProblem bounds problem details that a client reads, in bytes.
	maxProblem = 4096

	// maxLinks and maxLinkAttributes bound what a link-format document makes us
	// allocate; a directory of a site has tens of links.
	maxLinks          = 4096
	maxLinkAttributes = 64
)
