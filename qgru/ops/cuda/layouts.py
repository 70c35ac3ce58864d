"""The layouts of the two walks over time: the forward's loop and the backward's."""

from __future__ import annotations

from qgru.ops.cuda.geometry import Geometry, Widths


class Loop(Geometry):
    """The forward's layout."""

    stages = 6
    most_warps = 8
    row_choices = (4, 8, 16, 24)

    @property
    def k_split(self) -> int:
        """Warps that share a tile's product, each over some of the columns."""
        return self.warps // self.tile_warps

    @property
    def blocks(self) -> int:
        """See `Geometry`: a block is 64 columns of all gates."""
        return self.padded // 64 // self.k_split

    def lane_bytes(self, widths: Widths) -> int:
        """See `Geometry`."""
        return 96 * self.tiles_a_warp * widths.weight_limbs

    def macros(self, widths: Widths) -> dict[str, int]:
        """See `Geometry`."""
        held = {"REGISTER_K64": self.register_blocks, "SHARED_K64": self.shared_blocks}
        return {**super().macros(widths), "K_SPLIT": self.k_split, **held}

    @property
    def elements(self) -> int:
        """Elements of a tile's slot in the stored codes: two units of a quarter of the rows."""
        return self.rows // 2

    def step_us(self, widths: Widths) -> float:
        """See `Geometry`."""
        products = self.cta_tiles * (self.padded // 64) * -(-self.rows // 8) * widths.weight_limbs * widths.state_limbs
        shared = self.shared_blocks * self.block_bytes(widths)
        exchange = 0.15 + 0.03 * self.cluster if self.cluster > 1 else 0
        pointwise = 0.3 * self.lane_rows * self.tiles_a_warp * self.warps / 8
        return 0.15 + pointwise + exchange + 0.006 * products + (shared + 2 * self.streamed_bytes(widths)) / 220e3

    def fixed_bytes(self, widths: Widths) -> int:
        """See `Geometry`."""
        elements = self.tiles_a_warp * 2 * self.lane_rows  # of a lane
        levels = widths.weight_limbs + widths.state_limbs - 1
        state = 2 * self.rows * self.padded * widths.state_limbs
        ring = self.stages * self.threads * (elements * 4 * widths.code_bytes + self.rows)
        partial = 4 * 3 * elements * levels * self.threads if self.k_split > 1 else 0
        constants = 16 * self.cta_tiles * (8 * widths.real_bytes + 2 * 4 * 8)
        return state + ring + partial + constants + widths.table_bytes

    def register_bytes(self, widths: Widths) -> int:
        """See `Geometry`."""
        many_sums = self.rows >= 16 and widths.weight_limbs + widths.state_limbs == 4
        if self.tiles_a_warp > 2 or many_sums or self.rows * self.tiles_a_warp > 32:
            return 384
        return 768 if self.rows == 4 else 576


class Walk(Geometry):
    """The backward's layout."""

    most_warps = 16
    row_choices = (4, 8, 12, 16)

    @property
    def stages(self) -> int:
        """See `Geometry`."""
        return 4 if self.cluster == 1 else 3

    @property
    def tile_groups(self) -> int:
        """Groups of tiles that a product's warps are dealt to; a group's warps share its columns.

        Long products read their other operand less often with many tiles a warp; for short ones, adding the parts up
        would take longer.
        """
        if 3 * self.padded // 64 < 3 * self.warps:
            return self.tile_warps
        groups = (n for n in (1, 2, 4, 8) if self.cta_tiles % n == 0 and self.warps % n == 0 and n <= self.tile_warps)
        fitting = (n for n in groups if self.cta_tiles // n <= 4 and self.cta_tiles // n * self.rows // 4 <= 8)
        return next(fitting, self.tile_warps)

    @property
    def parts(self) -> int:
        """Warps of a group."""
        return self.warps // self.tile_groups

    @property
    def blocks(self) -> int:
        """See `Geometry`: a block is 64 columns of one gate."""
        return -(-3 * self.padded // 64 // self.parts)

    def lane_bytes(self, widths: Widths) -> int:
        """See `Geometry`."""
        return 32 * self.cta_tiles // self.tile_groups * widths.weight_limbs

    def macros(self, widths: Widths) -> dict[str, int]:
        """See `Geometry`."""
        held = {"REGISTER_BLOCKS": self.register_blocks, "SHARED_BLOCKS": self.shared_blocks}
        return {**super().macros(widths), "TILE_GROUPS": self.tile_groups, **held}

    def step_us(self, widths: Widths) -> float:
        """See `Geometry`."""
        columns = self.rows * 2 * (2 if widths.gradient_limbs == 3 else 1)
        operands = self.tile_groups * 3 * self.padded * columns  # bytes from shared memory
        products = self.cta_tiles * 3 * self.padded // 64 * columns // 8 * widths.weight_limbs
        product = operands / 200e3 + 0.002 * products + (0.1 + 0.0125 * self.parts if self.parts > 1 else 0)
        slices = 3 * self.padded * columns * (self.cluster - 1) / self.cluster
        pointwise = 0.4 * self.lane_rows * self.tiles_a_warp * self.warps / 8
        shared = self.shared_blocks * self.block_bytes(widths)
        exchange = 0.45 + slices / 32e3 if self.cluster > 1 else 0
        return 0.2 + pointwise + exchange + product + (shared + 5 * self.streamed_bytes(widths)) / 220e3

    def fixed_bytes(self, widths: Widths) -> int:
        """See `Geometry`."""
        columns = self.rows * 2 * (2 if widths.gradient_limbs == 3 else 1)
        slices = 3 * self.padded * columns + 4 * self.rows * self.cluster
        pairs = self.tiles_a_warp * self.lane_rows * self.threads
        partial = self.parts * self.cta_tiles * self.rows // 4 * 256 if self.parts > 1 else 0
        return slices + self.stages * pairs * 40 + 4 * self.rows * self.tile_warps + partial

    def register_bytes(self, widths: Widths) -> int:
        """See `Geometry`."""
        if self.warps > 8:
            return 288 if self.cta_tiles == self.warps else 192
        if widths.weight_limbs == 2 or widths.gradient_limbs == 3 or self.rows == 16:
            return 448
        return 576 if self.tile_groups == self.tile_warps else 512
