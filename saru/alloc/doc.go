// Package alloc decides which director owns which bucket, and who is to follow it. It is pure: the same inputs give the same table on every
// machine, by integers alone.
//
// Its rules, the first before the second and so on:
//
//  1. Shares are exact to one bucket: each director owns the integer below its exact share (buckets * weight / weights) or the one above.
//  2. As little as possible moves. Who is above the integer below keeps that bucket, before the largest remainder decides who is rounded up.
//  3. What must move goes to its next owner as often as rules 1 and 2 permit, because the state of its connections is there.
//  4. If an owner leaves, handing each of its buckets to the next owner is what Allocate does.
//  5. As few next owners as possible change.
//
// Rule 2 differs from the method of largest remainder where weights differ: that method takes a bucket from one survivor and gives it to another
// now and then, only because a third one left and remainders changed their order. With equal weights, only buckets of a leaver move, and a
// newcomer is the only one that gets any. With different weights no method can promise that together with rule 1 (Balinski and Young, "Fair
// Representation", 1982); a survivor that would fall more than a bucket short then gets one from another survivor (TestRoundingMoves).
// In 10,500 leaves from farms of 2 to 64, with random weights of 1 to 3, to 10 and to 1000, that did not happen once.
package alloc
