// Command crivo screens payments for risk: up runs the whole system, the other commands work with a running one.
package main

import (
	"os"

	"crivo/services/cli"
)

func main() { os.Exit(cli.Main(os.Args[1:])) }
