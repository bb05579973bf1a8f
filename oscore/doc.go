// Package oscore protects CoAP messages end to end: OSCORE (RFC 8613) between two
// endpoints, and Group OSCORE (draft-ietf-core-oscore-groupcomm-28) among the
// members of a group. It works on the messages of package coap, opens no socket
// and starts no goroutine.
//
// Start at [New] and [Context] for two endpoints, at [NewGroup] and [Group] for
// groups. A [Context] serves both roles: a client calls [Context.ProtectRequest] and
// [Context.UnprotectResponse], a server [Context.UnprotectRequest], or that of a
// [Set] of many contexts, and [Context.ProtectResponse]. An [Exchange] goes from the
// request to its responses. [Context.Refuse] makes the response to a request that was
// not accepted.
//
// A [Group] is one member through all the rekeys of its group: [Group.Install] takes
// what the Group Manager gives. A client calls [Group.ProtectRequest] for all members, or
// [Group.ProtectRequestTo] for one, and [GroupExchange.Unprotect] for each response; a
// server calls [Group.UnprotectRequest] and [GroupRequest.Protect]. A [GroupVerifier]
// checks signatures without being a member.
//
// # State
//
// A nonce that is used twice under one key gives the keys of that message and
// its authenticity away, so that three rules hold whatever happens:
//
//   - Sequence numbers are reserved in a [Reserver] before they are used, many at
//     once. After a restart a context begins at what was last reserved
//     ([SequenceConfig.Start]), which is behind everything that may have been used.
//     A context without a Reserver must not outlive the process: it has to be
//     derived with a new secret, salt or ID Context, as [Renewal] does.
//   - What is lost of a Replay Window is not guessed. With [Params.Window] not
//     valid, requests are refused with [ErrNotFresh] and answered by an Echo
//     challenge until one proves to be new (RFC 8613, Appendix B.1.2). A window that
//     was stored orderly, [Window.State], is good for one start.
//   - The nonce of a request goes to one response at most: the Replay Window keeps
//     whether it is used up, and does not give away those from before a restart.
//
// It is the same for groups: [GroupConfig.Store], of which [GroupFile] is one, keeps
// numbers and windows, [GroupConfig.Resume] numbers alone; without either a member joins
// anew after a restart.
//
// A call that fails changes no state.
//
// # Memory
//
// Outputs are written to a [Buffer]. One that is used again makes protecting and
// unprotecting free of allocations; a nil one is a new one. What is returned refers
// to the Buffer, and to token and outer options of the input. What a group remembers of
// a request, [GroupExchange] and [GroupRequest], can be given back by its Recycle.
package oscore
