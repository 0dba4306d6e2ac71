// Package nacretest is for tests only: one suite for each contract of the root
// package, which every implementation runs, and fakes that are real enough to run
// the product without root.
package nacretest
