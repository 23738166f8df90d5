package control

import "errors"

// ErrRefused means that the request makes sense but is not done without a stronger word, such as force.
var ErrRefused = errors.New("refused")
