"""The lengths that Fourier transforms are fast at."""


def good_fft_size(least: int) -> int:
    """The smallest 2ᵃ 3ᵇ 5ᶜ that is at least `least`."""
    best = 1 << max(least - 1, 0).bit_length()
    fives = 1
    while fives < best:
        threes = fives
        while threes < best:
            factor = -(-least // threes)
            best = min(best, threes << max(factor - 1, 0).bit_length())
            threes *= 3
        fives *= 5
    return best
