package process

// Run is what [Main] does with settings that were read.
var Run = Service.run
