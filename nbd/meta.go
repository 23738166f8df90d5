package nbd

import (
	"bufio"
	"slices"
	"strings"
	"unicode/utf8"
)

// maxContexts bounds the metadata contexts of one connection, and so the chunks of one reply.
const maxContexts = 32

// metaContext is a context that a client has selected; ids count from 1 in the order of the reply to NBD_OPT_SET_META_CONTEXT.
type metaContext struct {
	id   uint32
	name string
}

// optionMetaContext answers NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT ("Metadata querying").
func (c *conn) optionMetaContext(opt uint32, data []byte) error {
	if opt == optSetMetaContext {
		c.contexts, c.metaExport = nil, "" // also when what follows fails
		if c.framing == simpleReplies {
			return c.optionReply(opt, repErrInvalid, []byte("metadata contexts need structured replies"))
		}
	}
	name, queries, ok := parseMetaQuery(data)
	if !ok {
		return c.optionReply(opt, repErrInvalid, []byte("malformed query for metadata contexts"))
	}
	e, release, err := c.acquire(name)
	if err != nil {
		kind, text := c.acquireRefusal(opt, err)
		return c.optionReply(opt, kind, []byte(text))
	}
	offered := offeredContexts(e.Device)
	release()
	if opt == optListMetaContext {
		return c.listContexts(offered, queries)
	}
	return c.setContexts(name, offered, queries)
}

// offeredContexts returns the contexts that a device has to offer and the protocol can name.
func offeredContexts(dev Device) []string {
	reporter, ok := dev.(StatusReporter)
	if !ok {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(reporter.MetaContexts()), func(name string) bool { return !validContext(name) })
}

// validContext reports whether name is a namespace, a colon and a leaf within the protocol's bounds on strings.
func validContext(name string) bool {
	space, leaf, ok := strings.Cut(name, ":")
	return ok && space != "" && leaf != "" && len(name) <= maxNameSize && utf8.ValidString(name) && !strings.Contains(name, "\x00")
}

// listContexts lists what matches the queries, or everything if there are none. A query that ends in a colon stands for all that begin with it:
// "base:", "qemu:", "qemu:dirty-bitmap:".
func (c *conn) listContexts(offered, queries []string) error {
	w := bufio.NewWriter(c.stream)
	var reply, body []byte
	for _, name := range offered {
		if len(queries) > 0 && !slices.ContainsFunc(queries, func(q string) bool { return matches(name, q) }) {
			continue
		}
		body = append(be.AppendUint32(body[:0], 0), name...)
		reply = appendOptionReply(reply[:0], optListMetaContext, repMeta, body)
		if _, err := w.Write(reply); err != nil {
			return err
		}
	}
	if _, err := w.Write(appendOptionReply(reply[:0], optListMetaContext, repAck, nil)); err != nil {
		return err
	}
	return w.Flush()
}

func matches(name, query string) bool {
	return name == query || strings.HasSuffix(query, ":") && strings.HasPrefix(name, query)
}

// setContexts selects those contexts that are asked for by their full names, for the export that the client called name.
func (c *conn) setContexts(name string, offered, queries []string) error {
	var selected []metaContext
	var reply []byte
	for _, offer := range offered {
		if !slices.Contains(queries, offer) || slices.ContainsFunc(selected, func(m metaContext) bool { return m.name == offer }) {
			continue
		}
		if len(selected) == maxContexts {
			return c.optionReply(optSetMetaContext, repErrTooBig, []byte("more than 32 metadata contexts"))
		}
		id := uint32(len(selected) + 1)
		selected = append(selected, metaContext{id: id, name: offer})
		reply = appendOptionReply(reply, optSetMetaContext, repMeta, append(be.AppendUint32(nil, id), offer...))
	}
	c.contexts, c.metaExport = selected, name
	_, err := c.stream.Write(appendOptionReply(reply, optSetMetaContext, repAck, nil))
	return err
}

// contextsFor returns the selected contexts that hold for the export which the client calls name.
func (c *conn) contextsFor(name string) []metaContext {
	if name != c.metaExport {
		return nil
	}
	return c.contexts
}

// parseMetaQuery decodes the data of the two options: the name of an export and queries, each of which has a namespace. No slice is longer than
// the data.
func parseMetaQuery(data []byte) (name string, queries []string, ok bool) {
	name, data, ok = cutString(data)
	if !ok || len(data) < 4 {
		return "", nil, false
	}
	count := be.Uint32(data)
	data = data[4:]
	if uint64(count)*4 > uint64(len(data)) {
		return "", nil, false
	}
	queries = make([]string, count)
	for i := range queries {
		if queries[i], data, ok = cutString(data); !ok || strings.IndexByte(queries[i], ':') < 1 {
			return "", nil, false
		}
	}
	return name, queries, len(data) == 0
}

// cutString splits off a string with its length before it.
func cutString(data []byte) (s string, rest []byte, ok bool) {
	if len(data) < 4 {
		return "", nil, false
	}
	size := be.Uint32(data)
	if data = data[4:]; uint64(size) > uint64(len(data)) || size > maxNameSize {
		return "", nil, false
	}
	return string(data[:size]), data[size:], true
}
