//go:build race

package sim_test

// seeds are tried by every run of the tests; CRIVO_SIM_SEEDS for more. The race detector makes each five times as dear.
const seeds = 40

const raced = true
