// Package authz is the decision: what a key, a caller and a check are, and the
// one order in which a check is decided. It knows nobody: the standard library
// is all it imports, and every other room speaks its types.
//
// Two rules hold everywhere in it. Zero values deny. A decision (denied,
// expired, limited) is a value; an error means that it could not be decided.
package authz
