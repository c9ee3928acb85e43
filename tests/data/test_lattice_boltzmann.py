# SPDX-License-Identifier: Apache-2.0
"""The lattice-Boltzmann solver against physics, against a plain second writing of the method, and against itself."""

import numpy as np
import pytest

from framecast.data.simulate import lattice_boltzmann
from framecast.data.simulate.d2q9 import MIRROR, OPPOSITE, VELOCITIES
from framecast.data.simulate.lattice_boltzmann import Lattice, chosen, vorticity, wake

C = np.array(VELOCITIES)
WEIGHTS = np.array([4 / 9] + [1 / 9] * 4 + [1 / 36] * 4)


@pytest.fixture(params=["numpy", "numba"])
def backend(request):
    """Both ways to compute; what is true of flows is true of both."""
    if request.param == "numba":
        pytest.importorskip("numba")
    return request.param


def waves(n, dtype=np.float64):
    """Taylor-Green velocity of unit height in a periodic square, (1, 2, n, n)."""
    y, x = np.meshgrid(np.arange(n) + 0.5, np.arange(n) + 0.5, indexing="ij")
    k = 2 * np.pi / n
    return np.stack([np.cos(k * x) * np.sin(k * y), -np.sin(k * x) * np.cos(k * y)])[None].astype(dtype)


def test_periodic_box_conserves_mass_and_momentum(backend):
    rng = np.random.default_rng(1)
    density, velocity = 1 + 0.02 * rng.standard_normal((2, 12, 10)), 0.03 * rng.standard_normal((2, 2, 12, 10))
    lattice = Lattice(velocity, density=density, shear_viscosity=[0.02, 0.1], bulk_viscosity=0.05, backend=backend)
    momentum = (density[:, None] * velocity).sum((2, 3))
    lattice.run(300)
    assert np.allclose(lattice.density.sum((1, 2)), density.sum((1, 2)), rtol=1e-12)
    assert np.allclose((lattice.density[:, None] * lattice.velocity).sum((2, 3)), momentum, atol=1e-11)


@pytest.mark.parametrize("viscosity", [0.01, 0.08])
def test_vortices_decay_at_the_shear_viscosity(viscosity, backend):
    n, ticks = 32, 400
    lattice = Lattice(1e-3 * waves(n), shear_viscosity=viscosity, bulk_viscosity=0.3, backend=backend)
    lattice.run(200)  # the stress, absent at the start, builds up
    before = np.abs(lattice.velocity).max()
    lattice.run(ticks)
    decay = np.log(before / np.abs(lattice.velocity).max()) / ticks / (2 * (2 * np.pi / n) ** 2)
    assert decay == pytest.approx(viscosity, rel=0.01)


def test_decay_does_not_depend_on_a_uniform_stream(backend):
    n, ticks = 32, 320
    still, carried = 0.01 * waves(n), 0.01 * waves(n)
    carried[:, 0] += 0.1  # 320 ticks at 0.1 are one turn of the box
    both = Lattice(np.concatenate([still, carried]), shear_viscosity=0.02, bulk_viscosity=0.02, backend=backend)
    both.run(ticks)
    at_rest, moving = both.velocity
    moving[0] -= moving[0].mean()
    assert np.abs(at_rest - moving).max() < 0.05 * np.abs(at_rest).max()


@pytest.mark.parametrize(("shear", "bulk"), [(0.02, 0.02), (0.02, 0.2), (0.1, 0.02)])
def test_sound_is_damped_by_the_sum_of_both_viscosities(shear, bulk, backend):
    n, ticks = 64, 1108  # ten periods of n sqrt(3)
    density = 1 + 1e-4 * np.cos(2 * np.pi * np.arange(n) / n)[None, None] * np.ones((1, 3, 1))
    lattice = Lattice(
        np.zeros((1, 2, 3, n)), density=density, shear_viscosity=shear, bulk_viscosity=bulk, backend=backend
    )
    heights = []
    for _ in range(ticks):
        lattice.run(1)
        heights.append(np.abs(np.fft.rfft(lattice.density[0, 0] - 1))[1])
    heights = np.array(heights) / (n / 2) / 1e-4
    peaks = np.nonzero((heights[1:-1] > heights[:-2]) & (heights[1:-1] >= heights[2:]))[0] + 1
    rate = -np.polyfit(peaks, np.log(heights[peaks]), 1)[0]
    assert rate == pytest.approx((shear + bulk) / 2 * (2 * np.pi / n) ** 2, rel=0.02)


def test_sound_travels_at_the_lattice_speed(backend):
    n = 72  # one width of row for all lattices here: the compiled solver is compiled once
    density = 1 + 1e-4 * np.cos(2 * np.pi * np.arange(n) / n)[None, None] * np.ones((1, 3, 1))
    lattice = Lattice(
        np.zeros((1, 2, 3, n)), density=density, shear_viscosity=0.005, bulk_viscosity=0.005, backend=backend
    )
    ticks = round(n * np.sqrt(3))
    lattice.run(ticks)  # one period brings the crest back
    assert np.fft.rfft(lattice.density[0, 0] - 1)[1].real > 0.95 * n / 2 * 1e-4


def poiseuille_error(height, backend):
    """Greatest error of the steady profile between walls, as a share of its top, with diffusive scaling."""
    nu, top = 0.1, 0.4 / height
    force = 8 * nu * top / height**2
    lattice = Lattice(
        np.zeros((1, 2, height, 4)),
        shear_viscosity=nu,
        bulk_viscosity=nu,
        floors="wall",
        force=(force, 0.0),
        backend=backend,
    )
    lattice.run(int(20 * height**2 / nu / np.pi**2))
    y = np.arange(height) + 0.5
    exact = force / (2 * nu) * y * (height - y)
    assert np.abs(lattice.velocity[0, 1]).max() < 1e-9
    return np.abs(lattice.velocity[0, 0] - exact[:, None]).max() / top


def test_flow_between_walls_is_a_parabola_and_converges(backend):
    coarse, fine = poiseuille_error(8, backend), poiseuille_error(16, backend)
    assert coarse < 0.02
    assert fine < coarse / 3.5  # second order


def test_obstacle_wall_equals_floor_wall(backend):
    velocity = np.zeros((1, 2, 10, 5))
    settings = {"shear_viscosity": 0.05, "bulk_viscosity": 0.05, "force": (1e-4, 0.0), "backend": backend}
    floor = Lattice(velocity[:, :, 1:-1], floors="wall", **settings)
    solid = np.zeros((1, 10, 5), bool)
    solid[:, [0, -1]] = True
    slab = Lattice(velocity, solid=solid, **settings)
    floor.run(50)
    slab.run(50)
    assert np.allclose(floor.velocity, slab.velocity[:, :, 1:-1], atol=1e-15)


def test_slip_floor_is_a_mirror(backend):
    rng = np.random.default_rng(2)
    half = 0.02 * rng.standard_normal((1, 2, 6, 8))
    flipped = half[:, :, ::-1] * np.array([1, -1])[:, None, None]
    settings = {"shear_viscosity": 0.03, "bulk_viscosity": 0.1, "backend": backend}
    slip, whole = (
        Lattice(half, floors="slip", **settings),
        Lattice(np.concatenate([half, flipped], axis=2), **settings),
    )
    slip.run(40)
    whole.run(40)
    assert np.allclose(slip.velocity, whole.velocity[:, :, :6], atol=1e-14)


def equilibrium(density, velocity):
    c_u = np.einsum("ia,a...->i...", C, velocity)
    w = WEIGHTS.reshape(-1, *[1] * density.ndim)
    return w * density * (1 + 3 * c_u + 4.5 * c_u**2 - 1.5 * (velocity**2).sum(0))


def plain_wake(velocity, solid, *, nu, bulk, inflow, ticks):
    """The same flow past a disc written with populations, as the method is usually told; velocity at the end."""
    omega_s, omega_b = 1 / (3 * nu + 0.5), 1 / (3 * bulk + 0.5)
    f = equilibrium(np.ones(velocity.shape[1:]), velocity)
    traceless = C[:, :, None] * C[:, None, :] - np.eye(2) / 3
    for _ in range(ticks):
        rho = f.sum(0)
        base = equilibrium(rho, np.einsum("ia,iyx->ayx", C, f) / rho)
        stress = np.einsum("ia,ib,iyx->abyx", C, C, f - base)
        trace = np.eye(2)[:, :, None, None] * (stress[0, 0] + stress[1, 1]) / 2
        scaled = trace * (1 - omega_b) + (stress - trace) * (1 - omega_s)
        post = base + 4.5 * WEIGHTS[:, None, None] * np.einsum("iab,abyx->iyx", traceless, scaled)
        f = np.empty_like(post)
        for i, (c_x, c_y) in enumerate(VELOCITIES):
            f[i] = np.roll(post[i], (c_y, c_x), (0, 1))
            back = np.roll(solid, (c_y, c_x), (0, 1)) & ~solid
            f[i][back] = post[OPPOSITE[i]][back]
            if c_y:
                edge = 0 if c_y > 0 else -1
                f[i][edge] = np.roll(post[MIRROR[i]][edge], c_x)
        f[:, solid] = WEIGHTS[:, None]
        f[:, :, 0] = equilibrium(np.ones(1), np.array([[inflow], [0.0]]))
        f[:, :, -1] = f[:, :, -2]
    return np.where(solid, 0, np.einsum("ia,iyx->ayx", C, f) / f.sum(0))


def test_fused_moments_equal_plain_populations(backend):
    lattice = wake(32, diameter=6, inflow=0.1, reynolds=60.0, offset=1.3, bulk_viscosity=0.02, backend=backend)
    expected = plain_wake(
        lattice.velocity[0].astype(np.float64), lattice.solid[0], nu=0.01, bulk=0.02, inflow=0.1, ticks=63
    )
    lattice.run(63)
    assert np.abs(lattice.velocity[0] - expected).max() < 1e-6


def test_symmetric_start_stays_symmetric(backend):
    lattice = wake(32, diameter=6, inflow=0.1, reynolds=60.0, bump=0.0, backend=backend)
    lattice.run(400)
    across = lattice.velocity[0, 1]
    assert np.abs(across).max() > 0.02
    assert np.abs(across + across[::-1]).max() < 1e-4


def test_wake_sheds_at_the_known_period(backend):
    lattice = wake(64, diameter=8, inflow=0.1, reynolds=100.0, backend=backend)
    lattice.run(6000)
    probe = []
    for _ in range(40):
        probe.extend(lattice.run(50, probe=(31, 40))[:, 0, 1])
        inside = lattice.density[0, :, :48]  # vortices that leave press on the last columns
        assert inside.min() > 0.95 and inside.max() < 1.05
    probe = np.array(probe)
    rising = np.nonzero((probe[:-1] < 0) & (probe[1:] >= 0))[0]
    assert np.isfinite(lattice.velocity).all()
    assert np.diff(rising).mean() == pytest.approx(385, abs=10)
    assert np.ptp(np.diff(rising)) <= 2


def test_flow_below_the_critical_reynolds_number_is_steady(backend):
    lattice = wake(48, diameter=6, inflow=0.1, reynolds=20.0, backend=backend)
    lattice.run(6000)
    before = lattice.velocity
    lattice.run(100)
    assert np.abs(lattice.velocity - before).max() < 1e-3 * 0.1


def test_bits_do_not_depend_on_the_batch(backend):
    reynolds, offset = [80.0, 120.0, 190.0], [-3.0, 0.4, 2.0]
    together = wake(32, diameter=6, inflow=0.08, reynolds=reynolds, offset=offset, backend=backend)
    alone = wake(32, diameter=6, inflow=0.08, reynolds=reynolds[1], offset=offset[1], backend=backend)
    together.run(200)
    alone.run(200)
    assert np.array_equal(together.velocity[1], alone.velocity[0])
    assert np.array_equal(together.density[1], alone.density[0])


def test_probe_records_every_tick(backend):
    watched, stepped = (wake(16, diameter=3, inflow=0.1, reynolds=[20.0, 30.0], backend=backend) for _ in range(2))
    seen = watched.run(5, probe=(8, 12))
    stepped.run(5)
    assert seen.shape == (5, 2, 2)
    now = stepped.density[:, None] * stepped.velocity
    assert np.allclose(seen[-1], now[:, :, 8, 12], atol=1e-7)


def test_obstacle_is_at_rest_with_density_one(backend):
    lattice = wake(32, diameter=6, inflow=0.1, reynolds=100.0, backend=backend)
    lattice.run(50)
    assert (lattice.velocity[0][:, lattice.solid[0]] == 0).all()
    assert (lattice.density[lattice.solid] == 1).all()


def test_vorticity_of_solid_rotation_is_twice_its_rate():
    y, x = np.meshgrid(np.arange(8.0), np.arange(9.0), indexing="ij")
    assert np.allclose(vorticity(0.3 * np.stack([-y, x])[None]), 0.6)


def test_unstable_flow_is_reported(backend):
    lattice = wake(32, diameter=6, inflow=0.4, reynolds=1e5, backend=backend)
    with pytest.raises(ValueError, match="flow 0 of 1 became unstable"):
        lattice.run(3000)


@pytest.mark.parametrize("force", [(0.0, 0.0), (2e-5, -1e-5)])
@pytest.mark.parametrize("floors", ["periodic", "slip", "wall"])
@pytest.mark.parametrize("sides", ["periodic", "open"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_backends_give_the_same_bits(sides, floors, force, dtype):
    pytest.importorskip("numba")
    rng = np.random.default_rng([len(sides), len(floors)])
    solid = rng.random((3, 13, 18)) < 0.1  # some on the edges, too, but for open ones, which are set
    solid[:, 4, 5] = False
    if sides == "open":
        solid[..., [0, 1, -2, -1]] = False
    velocity = np.where(solid[:, None], 0, 0.03 * rng.standard_normal((3, 2, 13, 18))).astype(dtype)
    plain, compiled = (
        Lattice(
            velocity,
            density=(1 + 0.02 * rng_density.standard_normal((3, 13, 18))).astype(dtype),
            shear_viscosity=[0.05, 0.1, 0.2],
            bulk_viscosity=[0.1, 0.05, 0.08],
            sides=sides,
            floors=floors,
            solid=solid,
            inflow=0.05,
            force=force,
            backend=backend,
        )
        for backend, rng_density in (("numpy", np.random.default_rng(3)), ("numba", np.random.default_rng(3)))
    )
    for ticks in (1, 2, 60):
        assert np.array_equal(plain.run(ticks, probe=(4, 5)), compiled.run(ticks, probe=(4, 5)))
        assert np.array_equal(plain.velocity, compiled.velocity)
        assert np.array_equal(plain.density, compiled.density)


def test_backends_agree_on_a_shedding_wake():
    pytest.importorskip("numba")
    plain, compiled = (
        wake(48, diameter=6, inflow=0.1, reynolds=[120.0, 200.0], offset=[2.3, -1.0], backend=backend)
        for backend in ("numpy", "numba")
    )
    assert np.array_equal(plain.run(3000, probe=(23, 30)), compiled.run(3000, probe=(23, 30)))
    assert np.array_equal(vorticity(plain.velocity), vorticity(compiled.velocity))


def test_wide_rows_are_computed_too():
    pytest.importorskip("numba")
    velocity = (0.02 * np.random.default_rng(5).standard_normal((1, 2, 3, 300))).astype(np.float32)
    plain, compiled = (
        Lattice(velocity, shear_viscosity=0.05, bulk_viscosity=0.05, backend=backend) for backend in ("numpy", "numba")
    )
    plain.run(9)
    compiled.run(9)
    assert np.array_equal(plain.velocity, compiled.velocity)


def test_compiled_solver_without_numba_is_refused_in_a_sentence(monkeypatch):
    monkeypatch.setattr(lattice_boltzmann, "find_spec", lambda name: None)
    assert chosen("auto") == chosen("numpy") == "numpy"
    with pytest.raises(ValueError, match=r"needs numba.+framecast\[fast\]"):
        wake(16, diameter=3, inflow=0.1, reynolds=50.0, backend="numba")
    with pytest.raises(ValueError, match="no simulator backend 'cuda'"):
        chosen("cuda")


def test_compiled_solver_works_where_nothing_can_be_kept(monkeypatch):
    numba = pytest.importorskip("numba")
    from framecast.data.simulate import compiled

    def njit(function, *, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return plain(function, **options)

    plain = numba.njit
    monkeypatch.setattr(numba, "njit", njit)
    assert callable(compiled._kernel.__wrapped__(80, False))


def test_zero_viscosity_is_refused():
    with pytest.raises(ValueError, match="above 0"):
        Lattice(waves(8), shear_viscosity=0.0, bulk_viscosity=0.1)
