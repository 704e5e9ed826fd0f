//go:build !race

package sim_test

// seeds are tried by every run of the tests; CRIVO_SIM_SEEDS for more.
const seeds = 200

const raced = false
