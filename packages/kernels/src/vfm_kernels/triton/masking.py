"""EVA's masks, one program each: a loop over attempts at a block, with the mask in registers."""
# mypy: ignore-errors

import triton
import triton.language as tl

ATTEMPTS_PER_BLOCK = tl.constexpr(10)
UNIFORMS_PER_ATTEMPT = tl.constexpr(5)
LOG_MAX_ASPECT = tl.constexpr(1.2039728043259361)  # ln(1 / 0.3)


@triton.jit
def mixed(word):
    """SplitMix64's last steps, on 64 bits."""
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB
    return word ^ (word >> 31)


@triton.jit
def uniform(key, attempt, number: tl.constexpr):
    """So numbered among the uniforms of an attempt, in fp64: 53 bits of the key's stream."""
    place = (attempt * UNIFORMS_PER_ATTEMPT + (number + 1)).to(tl.uint64)
    return (mixed(key + place * 0x9E3779B97F4A7C15) >> 11).to(tl.float64) * 1.1102230246251565e-16


@triton.jit
def nearest(x):
    """The nearest integer; halves have no chance here."""
    return tl.floor(x + 0.5).to(tl.int32)


@triton.jit
def block_mask_kernel(
    seeds, masks, rows, columns, num_masked, min_block, num_patches, EXACT: tl.constexpr, BLOCK: tl.constexpr
):
    """Blocks while they fit, then, for an exact count, blocks that are cut; ten failed attempts end either."""
    sample = tl.program_id(0).to(tl.int64)
    key = mixed(tl.load(seeds + sample).to(tl.uint64, bitcast=True))
    places = tl.arange(0, BLOCK)
    row, column = places // columns, places % columns
    # 1 is masked, 2 beyond the grid: never free.
    mask = tl.where(places < num_patches, 0, 2)
    nothing = tl.sum(mask, axis=0) * 0  # a number, also where an argument is a constant
    missing, tries, attempt, filling = nothing + num_masked, nothing, nothing, nothing
    while (missing > 0) & (filling <= EXACT):
        area = min_block + (missing - min_block) * uniform(key, attempt, 0)
        aspect = tl.exp((2 * uniform(key, attempt, 1) - 1) * LOG_MAX_ASPECT)
        height, width = nearest(tl.sqrt(area * aspect)), nearest(tl.sqrt(area / aspect))
        fits = (height < rows) & (width < columns)
        top = (uniform(key, attempt, 2) * (rows - height + 1)).to(tl.int32)
        left = (uniform(key, attempt, 3) * (columns - width + 1)).to(tl.int32)
        within = (row >= top) & (row < top + height) & (column >= left) & (column < left + width) & fits
        new = (within & (mask == 0)).to(tl.int32)
        count = tl.sum(new, axis=0)
        usable = (count > 0) & ((count <= missing) | (filling > 0))
        tries += 1
        given_up = (tries == ATTEMPTS_PER_BLOCK) & (usable == 0)
        if EXACT:
            all_free = given_up & (filling > 0)
            new = tl.where(all_free, (mask == 0).to(tl.int32), new)
            usable = usable | all_free
            # At most what is missing: the last patches where the coin says that the top is cut off, else the first.
            rank, count = tl.cumsum(new, axis=0), tl.sum(new, axis=0)
            from_top = uniform(key, attempt, 4) < 0.5
            first = tl.where(from_top, count - missing, 0)
            new = ((new > 0) & (rank > first) & (rank <= tl.where(from_top, count, missing))).to(tl.int32)
        new = tl.where(usable, new, 0)
        mask += new
        missing -= tl.sum(new, axis=0)
        filling = tl.where(given_up, 1, filling)
        tries = tl.where(usable | given_up, 0, tries)
        attempt += 1
    tl.store(masks + sample * num_patches + places, mask == 1, mask=places < num_patches)
