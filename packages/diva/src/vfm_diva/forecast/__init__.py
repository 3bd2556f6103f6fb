"""The gain of feedback before it is paid for: `diva.predict`, and the law that it follows, `diva.law`."""
