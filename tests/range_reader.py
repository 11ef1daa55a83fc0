"""A range decoder written from docs/format.md in plain integers, without constriction."""

import bisect

BITS = 24


class RangeReader:
    """Decodes a stream of the compact file.

    Args:
        data: the bytes of the stream.
    """

    def __init__(self, data):
        self.words = [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4)]
        self.lower, self.range, self.point = 0, 2**64 - 1, 0
        for _ in range(2):
            self._next_word()

    def _next_word(self):
        word = self.words.pop(0) if self.words else 0
        self.point = (self.point << 32 | word) % 2**64

    def symbol(self, starts):
        """Decodes one symbol.

        Args:
            starts: list of the number at which each symbol's share of [0, 2^24) starts, followed
                by 2^24.
        """
        scale = self.range >> BITS
        quantile = (self.point - self.lower) % 2**64 // scale
        symbol = bisect.bisect_right(starts, quantile) - 1
        self.lower = (self.lower + scale * starts[symbol]) % 2**64
        self.range = scale * (starts[symbol + 1] - starts[symbol])
        if self.range < 2**32:
            self.lower, self.range = (self.lower << 32) % 2**64, self.range << 32
            self._next_word()
        return symbol

    def uniform(self, size):
        """Decodes one of `size` equally likely numbers; the last one has the remainder, too."""
        share = 2**BITS // size
        return self.symbol([share * i for i in range(size)] + [2**BITS])

    def order(self, size, largest=2**20):
        """Decodes an order of `size` blocks, with swaps of more than `largest` in two digits."""
        digits = [
            self.uniform(i + 1) if i + 1 <= largest else self.uniform(-(-(i + 1) // 1024)) * 1024
            for i in range(1, size)
        ]
        order = list(range(size))
        for i, j in enumerate(digits, start=1):
            if i + 1 > largest:
                j += self.uniform(1024)
            order[i], order[j] = order[j], order[i]
        return order

    def levels(self, size, bits):
        """Decodes the levels of a kernel with `size` weights."""
        return self.levels_up_to(2 ** (bits - 1) - 1, size)

    def integers(self, size):
        """Decodes an array of `size` integers, which follows its largest absolute value."""
        top = self.uniform(128)
        return self.levels_up_to(top, size) if top else [0] * size

    def levels_up_to(self, top, size):
        """Decodes `size` integers in [-top, top]."""
        counts, levels = [1] * (2 * top + 1), []
        while len(levels) < size:
            free, total = 2**BITS - len(counts), sum(counts)
            shares = [count * free // total for count in counts]
            shares[counts.index(max(counts))] += free - sum(shares)
            starts = [0]
            for share in shares:
                starts.append(starts[-1] + share + 1)
            chunk = min(max(64, len(levels) // 8), size - len(levels))
            symbols = [self.symbol(starts) for _ in range(chunk)]
            for symbol in symbols:
                counts[symbol] += 2
            levels += [symbol - top for symbol in symbols]
        return levels
