package main

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"
)

// first is the day before the first day of the month.
var first = time.Date(2026, time.February, 28, 0, 0, 0, 0, time.UTC)

// random is what a day of a guest is drawn from.
func random(seed int64, day int) *rand.Rand { return rand.New(rand.NewPCG(uint64(seed), uint64(day))) }

var (
	verbs    = strings.Fields("GET GET GET GET GET GET POST HEAD PUT DELETE")
	codes    = []int{200, 200, 200, 200, 200, 304, 404, 500, 302, 201}
	pages    = strings.Split("/|/cart|/login|/search?q=%s+%s|/product/%d|/img/%d.jpg|/api/v1/items/%d|/static/app.%d.js|/account/orders/%d|/help/%s-%s", "|")
	agents   = strings.Split("Mozilla/5.0 (X11; Linux x86_64; rv:%d.0) Gecko/20100101 Firefox/%d.0|Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/%d.0.0.0 Safari/%d.36|curl/8.%d.%d", "|")
	words    = strings.Fields("order cart invoice payment address street number parcel customer refund late early broken please thanks delivery again window lamp chair table blue green large small cotton wool paper box box and the of with without for from to was is not never always two three four first last week month price stock colour size return label office home garden kitchen spring autumn")
	services = strings.Fields("checkout catalogue mailer search session stock billing")
	messages = strings.Split("cache miss for key item:%d, took %d ms|retry %d of job %d|order %d accepted, %d positions|slow query: select * from orders where customer = %d limit %d|connection %d to pool closed after %d s|token of user %d expires in %d s", "|")
)

func sentence(r *rand.Rand, n int) string {
	var b strings.Builder
	for i := range n {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(words[r.IntN(len(words))])
	}
	return b.String()
}

// fill puts into a pattern what its verbs want.
func fill(r *rand.Rand, pattern string) string {
	var with []any
	for i := 0; i+1 < len(pattern); i++ {
		if pattern[i] == '%' && pattern[i+1] == 'd' {
			with = append(with, r.IntN(9000))
		} else if pattern[i] == '%' && pattern[i+1] == 's' {
			with = append(with, words[r.IntN(len(words))])
		}
	}
	return fmt.Sprintf(pattern, with...)
}

// writeLogs writes at least so many bytes of lines: three of a web server, one of an application in JSON.
func writeLogs(out *bufio.Writer, seed int64, day int, bytes int64) {
	r := random(seed, day)
	at := first.AddDate(0, 0, day)
	for written := int64(0); written < bytes; {
		at = at.Add(time.Duration(r.IntN(2000)) * time.Millisecond)
		var line string
		if r.IntN(4) > 0 {
			agent := 90 + r.IntN(40)
			line = fmt.Sprintf("10.%d.%d.%d - user%d [%s] \"%s %s HTTP/1.1\" %d %d \"-\" \"%s\" rt=%.4f id=%016x\n",
				r.IntN(4), r.IntN(256), r.IntN(256), r.IntN(5000), at.Format("02/Jan/2006:15:04:05 -0700"), verbs[r.IntN(len(verbs))], fill(r, pages[r.IntN(len(pages))]),
				codes[r.IntN(len(codes))], int(r.ExpFloat64()*20000), fmt.Sprintf(agents[r.IntN(len(agents))], agent, agent), r.ExpFloat64()/8, r.Uint64())
		} else {
			line = fmt.Sprintf("{\"time\":%q,\"level\":\"info\",\"service\":%q,\"trace\":\"%016x\",\"msg\":%q}\n",
				at.Format(time.RFC3339Nano), services[r.IntN(len(services))], r.Uint64(), fill(r, messages[r.IntN(len(messages))]))
		}
		n, err := out.WriteString(line)
		if err != nil {
			return // the writer keeps its error for Flush
		}
		written += int64(n)
	}
}

// What a day of the shop is.
const (
	newOrders     = 5000
	newEvents     = 8000
	changedOrders = 900  // whose state changes, anywhere in the table
	allSessions   = 1500 // all of which are replaced
	keptDays      = 8    // of events; orders stay
)

// writeRows writes a day of a shop: new orders and events, changes all over the older ones, sessions that are replaced, events that are old enough to go.
func writeRows(out *bufio.Writer, seed int64, day int) {
	r := random(seed^0x5eed, day)
	quoted := func(n int) string { return "'" + sentence(r, n) + "'" }
	_, _ = out.WriteString(`pragma journal_mode=wal;
create table if not exists orders (id integer primary key, customer int, day int, state text, total real, note text);
create index if not exists orders_customer on orders (customer);
create table if not exists events (id integer primary key, day int, kind text, at int, body text);
create index if not exists events_day on events (day, kind);
create table if not exists sessions (token text primary key, customer int, data text);
begin;
`)
	for range newOrders {
		fmt.Fprintf(out, "insert into orders (customer, day, state, total, note) values (%d, %d, 'new', %.2f, %s);\n", r.IntN(20000), day, r.ExpFloat64()*80, quoted(4+r.IntN(24)))
	}
	for range newEvents {
		fmt.Fprintf(out, "insert into events (day, kind, at, body) values (%d, '%s', %d, '{\"ref\":%d,\"trace\":\"%016x\",\"text\":\"%s\"}');\n",
			day, services[r.IntN(len(services))], first.AddDate(0, 0, day).Unix()+int64(r.IntN(86400)), r.IntN(1000000), r.Uint64(), sentence(r, 3+r.IntN(12)))
	}
	for range changedOrders {
		fmt.Fprintf(out, "update orders set state = '%s', total = total + %d, note = %s where id = %d;\n", words[r.IntN(len(words))], r.IntN(20), quoted(4+r.IntN(24)), 1+r.IntN(newOrders*day))
	}
	fmt.Fprintf(out, "delete from sessions;\ndelete from events where day <= %d;\n", day-keptDays)
	for range allSessions {
		fmt.Fprintf(out, "insert into sessions values ('%016x%016x', %d, %s);\n", r.Uint64(), r.Uint64(), r.IntN(20000), quoted(10))
	}
	_, _ = out.WriteString("commit;\n")
}
