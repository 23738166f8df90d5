// Package onset looks for the moment when something began to overwrite a volume with what looks encrypted, in what its history says was written.
//
// It judges by the history's own past: a database that always writes compressed pages is no alarm, a rise above what was usual is. Encrypted bytes have an entropy of nearly 8 bits each, and hardly any other data of a
// guest that is overwritten in place has; detectors that watch for that and for the rate of overwrites go back to Scaife et al., CryptoLock, ICDCS 2016, and Baek et al., SSD-Insider, ICDCS 2018.
package onset
