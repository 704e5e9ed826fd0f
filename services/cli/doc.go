// Package cli is what crivo does for people: up, submit, bench and the operators' commands.
package cli
