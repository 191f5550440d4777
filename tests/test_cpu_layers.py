"""Layers that a CPU computes faster give what torch's own give, with the same parameters, and elsewhere are torch's."""

import copy

import pytest
import torch
from model_factory import make_plans
from torch import nn

from autoseg import cpu_layers as layers
from autoseg.cpu_layers import suit_to_cpu
from autoseg.devices import lay_out_for_cpu
from autoseg.plugins import build_network

LAYOUTS = {2: torch.channels_last, 3: torch.channels_last_3d}
CONVS = {2: nn.Conv2d, 3: nn.Conv3d}
SIZES = {2: (12, 10), 3: (6, 8, 10)}


def suited(module):
    """Return a copy that was suited to the CPU."""
    one = copy.deepcopy(module)
    suit_to_cpu(one)
    return one


def names_of_operations(function):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as seen:
        function()
    return {event.key for event in seen.key_averages()}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dims", [2, 3])
def test_a_pointwise_convolution_and_its_gradients_are_the_same(dims, channels_last):
    torch.manual_seed(0)
    layout = LAYOUTS[dims] if channels_last else torch.contiguous_format
    own = CONVS[dims](5, 3, 1)
    x = torch.randn(2, 5, *SIZES[dims]).contiguous(memory_format=layout)
    results = []
    for conv in (own, suited(own)):
        image = x.clone(memory_format=torch.preserve_format).requires_grad_()
        found = conv(image)
        (found * torch.linspace(0, 1, found.numel()).view_as(found)).sum().backward()
        results.append((found, image.grad, conv.weight.grad, conv.bias.grad))
    for mine, theirs in zip(*results, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-5, atol=1e-5)


def test_only_input_that_is_not_channels_last_becomes_a_product():
    conv, x = suited(nn.Conv3d(4, 2, 1)), torch.randn(1, 4, 5, 6, 7)
    assert "aten::baddbmm" in names_of_operations(lambda: conv(x))
    assert "aten::baddbmm" not in names_of_operations(lambda: conv(x.contiguous(memory_format=torch.channels_last_3d)))


def test_a_product_computes_in_the_precision_of_autocast():
    conv, x = nn.Conv2d(8, 3, 1), torch.randn(2, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        mine, theirs = suited(conv)(x), conv(x)
    assert mine.dtype == theirs.dtype == torch.bfloat16
    assert torch.allclose(mine.float(), theirs.float(), atol=0.02)


UNUSUAL = [
    nn.Conv2d(4, 4, 3, padding=1),
    nn.Conv2d(4, 6, 3, stride=2, bias=False),
    nn.Conv2d(4, 4, 3, groups=2, dilation=2, padding=2),
    nn.Conv2d(4, 4, 3, padding="same"),
    nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
    nn.Conv2d(4, 4, 1, stride=2),
    nn.Conv2d(4, 4, 1, groups=2),
    nn.Conv2d(4, 4, 1, padding=(0, 1)),
    nn.Conv3d(4, 5, (1, 3, 3), padding=(0, 1, 1)),
    nn.ConvTranspose2d(4, 6, 2, 2),
    nn.ConvTranspose2d(4, 6, 3, 2, padding=1, output_padding=1),
    nn.ConvTranspose2d(4, 6, 2, 2, dilation=2),
    nn.ConvTranspose2d(4, 6, (1, 2), (1, 2), bias=False),
    nn.ConvTranspose3d(4, 6, (1, 2, 2), (1, 2, 2)),
    nn.ConvTranspose3d(4, 6, 2, 2, groups=2),
]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("conv", UNUSUAL, ids=str)
def test_convolutions_of_one_image_and_of_more_are_the_same_with_their_gradients(conv, images, channels_last):
    dims = conv.weight.ndim - 2
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(images, 4, *SIZES[dims], generator=generator)
    layout = LAYOUTS[dims] if channels_last else torch.contiguous_format
    x, found = x.contiguous(memory_format=layout), []
    gradient = torch.randn(conv(x).shape, generator=generator)
    for module in (copy.deepcopy(conv), suited(conv)):
        image = x.clone(memory_format=torch.preserve_format).requires_grad_()
        y = module(image)
        y.backward(gradient)
        found.append([y, image.grad, *(parameter.grad for parameter in module.parameters())])
    for mine, theirs in zip(*reversed(found), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_single_image_is_convolved_by_onednn(dims):
    """Without, torch takes 2 to 18 times as long; it does so for a single image of few lines and channels."""
    network = nn.Sequential(
        CONVS[dims](4, 4, 3, padding=1), {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[dims](4, 4, 2, 2)
    )
    lay_out_for_cpu(network, dims)
    with torch.no_grad():
        seen = names_of_operations(lambda: network(torch.randn(1, 4, *SIZES[dims])))
    assert "aten::mkldnn_convolution" in seen
    assert not any("slow" in name or "thnn" in name for name in seen)


def test_onednn_stays_off_where_it_is_switched_off(monkeypatch):
    monkeypatch.setattr(torch._C, "_get_mkldnn_enabled", lambda: False)
    conv = suited(nn.Conv2d(4, 4, 3, padding=1))
    with torch.no_grad():
        seen = names_of_operations(lambda: conv(torch.randn(1, 4, 8, 8)))
    assert "aten::mkldnn_convolution" not in seen


@pytest.mark.parametrize("images", [1, 2])
def test_convolutions_compute_in_the_precision_of_autocast(images):
    network = suited(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ConvTranspose2d(4, 4, 2, 2)))
    with torch.autocast("cpu", torch.bfloat16):
        first = network[0](torch.randn(images, 4, 8, 8))
        assert (first.dtype, network[1](first).dtype) == (torch.bfloat16, torch.bfloat16)


def test_the_asked_for_size_of_an_upsampled_image_holds():
    up, x = nn.ConvTranspose2d(4, 4, 2, 2), torch.randn(1, 4, 6, 6)
    assert suited(up)(x, output_size=[13, 12]).shape == up(x, output_size=[13, 12]).shape == (1, 4, 13, 12)


@pytest.mark.parametrize("kernel", [1, 3])
def test_convolutions_refuse_what_torchs_refuse(kernel):
    conv = nn.Conv2d(4, 3, kernel)
    for x in (torch.randn(1, 5, 6, 6), torch.randn(2, 5, 6, 6)):
        with pytest.raises(RuntimeError) as theirs:
            conv(x)
        with pytest.raises(RuntimeError) as mine:
            suited(conv)(x)
        assert str(mine.value) == str(theirs.value)


def test_a_head_of_many_classes_is_a_product():
    spec = make_plans("3d_fullres", channels=1, outputs=12).configuration("3d_fullres").network
    network = suited(build_network("plain_unet", spec)).eval()
    with torch.no_grad():
        assert "aten::baddbmm" in names_of_operations(lambda: network(torch.randn(2, 1, *spec.patch_size)))


def test_upsampled_slices_have_their_channels_last():
    up, x = suited(nn.ConvTranspose3d(4, 6, (1, 2, 2), (1, 2, 2))), torch.randn(1, 4, 5, 6, 7)
    y = up(x.contiguous(memory_format=torch.channels_last_3d))
    assert y.stride() == torch.empty(1, 6, 5, 12, 14, memory_format=torch.channels_last_3d).stride()


def test_transforms_of_functions_see_through():
    norm, conv = suited(nn.InstanceNorm2d(4)), suited(nn.Conv2d(4, 4, 3, padding=1))
    images = torch.randn(3, 1, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    mapped = torch.func.vmap(lambda image: norm(conv(image)))(images)
    assert torch.allclose(mapped, torch.stack([norm(conv(image)) for image in images]), atol=1e-5)


@pytest.mark.parametrize(
    "conv", [nn.Conv2d(4, 3, 1, padding="same"), nn.Conv2d(4, 3, 1, bias=False), nn.Conv2d(4, 3, (1, 1), dilation=2)]
)
def test_unusual_pointwise_convolutions_give_the_same(conv):
    x = torch.randn(2, 4, 9, 7)
    assert torch.allclose(suited(conv)(x), conv(x), atol=1e-6)


def test_one_image_without_a_batch_axis_is_convolved_as_before():
    conv, x = nn.Conv2d(4, 3, 1), torch.randn(4, 9, 7)
    assert torch.equal(suited(conv)(x), conv(x))


def test_an_empty_batch_is_convolved():
    assert suited(nn.Conv3d(4, 2, 1))(torch.randn(0, 4, 5, 6, 7)).shape == (0, 2, 5, 6, 7)


def test_a_traced_convolution_takes_other_batches():
    conv = suited(nn.Conv2d(4, 2, 1))
    traced = torch.jit.trace(conv, torch.randn(1, 4, 5, 6))
    assert traced(torch.randn(3, 4, 5, 6)).shape == (3, 2, 5, 6)


def test_modules_keep_their_names_parameters_and_hooks():
    network = nn.Sequential(nn.Conv3d(2, 16, 3), nn.InstanceNorm3d(16, affine=True), nn.Conv3d(16, 2, 1))
    before, parameters, told = list(network.state_dict()), list(network.parameters()), []
    network[2].register_forward_hook(lambda *_: told.append("head"))
    suit_to_cpu(network)
    assert list(network.state_dict()) == before
    assert all(a is b for a, b in zip(parameters, network.parameters(), strict=True))
    network(torch.randn(1, 2, 6, 6, 6))
    assert told == ["head"]
    assert isinstance(network[1], nn.InstanceNorm3d)
    assert isinstance(network[2], nn.Conv3d)


def test_classes_of_others_are_left_alone():
    class Own(nn.Conv2d):
        pass

    own = Own(2, 2, 1)
    suit_to_cpu(own)
    assert type(own) is Own


NORMS = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


def small_network(dims):
    """Return convolutions and instance norms, one of them directly before a convolution."""
    torch.manual_seed(0)
    conv, norm = CONVS[dims], NORMS[dims]
    return nn.Sequential(
        conv(1, 8, 3, padding=1), norm(8, affine=True),
        conv(8, 12, 3, padding=1, bias=False), norm(12), nn.LeakyReLU(inplace=True), conv(12, 2, 1),
    )  # fmt: skip


def all_gradients(network, images):
    weighted = network(images) * torch.linspace(-1, 1, 2).view(1, 2, *[1] * (images.ndim - 2))
    weighted.square().sum().backward()
    return [parameter.grad for parameter in network.parameters()]


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("dims", [2, 3])
def test_gradients_of_a_network_laid_out_for_a_cpu_are_those_of_the_plain_one(dims, images):
    """torch 2.13 gives wrong ones for a single image: its instance norm misreads a gradient with the channels last."""
    plain, x = small_network(dims), torch.randn(images, 1, *SIZES[dims], generator=torch.Generator().manual_seed(1))
    laid_out = copy.deepcopy(plain)
    lay_out_for_cpu(laid_out, dims)
    right = all_gradients(plain.double(), x.double())
    largest = max(float(gradient.abs().max()) for gradient in right)
    for mine, theirs in zip(all_gradients(laid_out, x), right, strict=True):
        assert torch.allclose(mine.double(), theirs, rtol=1e-3, atol=1e-5 * largest)


@pytest.mark.parametrize("dims", [2, 3])
def test_maps_have_their_channels_last_from_the_first_convolution_on(dims):
    network, maps = small_network(dims), []
    lay_out_for_cpu(network, dims)
    for module in network:
        module.register_forward_hook(lambda _, __, found: maps.append(found))
    network(torch.randn(2, 1, *SIZES[dims]))
    assert len(maps) == 6
    del maps[-1]  # of the head, which is the caller's
    assert all(found.is_contiguous(memory_format=LAYOUTS[dims]) and not found.is_contiguous() for found in maps)


@pytest.mark.parametrize("size", [16, 96])
def test_a_norm_keeps_the_number_format_and_its_own_epsilon(size):
    norm = nn.InstanceNorm2d(8, affine=True, eps=0.5)
    x = torch.randn(2, 8, size, size, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        for image in (x, x.bfloat16()):
            mine, theirs = suited(norm)(image), norm(image)
            assert mine.dtype == theirs.dtype
            assert torch.allclose(mine.float(), theirs.float(), atol=0.02)


@pytest.mark.parametrize(
    ("norm", "x"),
    [
        (nn.InstanceNorm2d(4), torch.randn(4, 9, 7)),
        (nn.InstanceNorm3d(4, affine=True), torch.randn(4, 3, 9, 7)),
        (nn.InstanceNorm2d(4, track_running_stats=True).eval(), torch.randn(2, 4, 9, 7)),
        (nn.InstanceNorm2d(4, affine=True).double(), torch.randn(2, 4, 9, 7).double()),
        (nn.InstanceNorm2d(4, affine=True).bfloat16(), torch.randn(2, 4, 9, 7).bfloat16()),
        (nn.InstanceNorm2d(4), torch.randn(0, 4, 9, 7)),
        (nn.InstanceNorm2d(0), torch.randn(2, 0, 9, 7)),
        (nn.InstanceNorm2d(4, eps=0.0), torch.ones(2, 4, 9, 7)),
    ],
)
def test_unusual_norms_are_torchs(norm, x):
    assert torch.equal(suited(norm)(x), norm(x))


def test_unusual_norms_of_a_single_image_have_the_right_gradient():
    norm, x = nn.InstanceNorm2d(4), torch.randn(1, 4, 6, 5, dtype=torch.float64)
    gradient = torch.randn_like(x)
    found = []
    for one, given in ((suited(norm), gradient.contiguous(memory_format=torch.channels_last)), (norm, gradient)):
        image = x.clone().requires_grad_()
        one(image).backward(given)
        found.append(image.grad)
    assert torch.allclose(*found)


@pytest.mark.parametrize("x", [torch.randn(2, 4, 1, 1), torch.randn(2, 3, 5, 5), torch.randn(5, 5)])
def test_norms_refuse_what_torchs_refuse(x):
    norm = nn.InstanceNorm2d(4, affine=True)
    with pytest.raises((ValueError, RuntimeError)) as theirs:
        norm(x)
    with pytest.raises(type(theirs.value)) as mine:
        suited(norm)(x)
    assert str(mine.value) == str(theirs.value)


@pytest.mark.parametrize("channels", [2, 12])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_logits_have_the_channels_first(channels, precision):
    """What follows goes class by class; to put many classes first afterwards would take longer than the network."""
    spec = make_plans("3d_fullres", channels=1, outputs=channels).configuration("3d_fullres").network
    network = build_network("plain_unet", spec)
    lay_out_for_cpu(network, 3)
    network.eval()
    x = torch.randn(2, spec.in_channels, *spec.patch_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        assert network(x).is_contiguous()


def test_what_is_exported_has_the_plain_layers():
    """What runs such files has fast layers of its own, and an example's layout is not that of every image."""
    network = suited(nn.Sequential(nn.Conv2d(3, 16, 1), nn.InstanceNorm2d(16))).eval()
    with torch.no_grad():
        exported = torch.export.export(network, (torch.randn(1, 3, 8, 8),))
    operations = {str(node.target) for node in exported.graph.nodes}
    assert any("conv2d" in name for name in operations)
    assert any("instance_norm" in name for name in operations)
    assert not any("baddbmm" in name for name in operations)


def sequence_and_map(dims):
    """Return a convolution, its norm and an activation, suited to the CPU, and a map that is large enough."""
    torch.manual_seed(0)
    sequence = suited(nn.Sequential(CONVS[dims](4, 8, 3, padding=1), NORMS[dims](8, affine=True), nn.LeakyReLU()))
    return sequence, torch.randn(1, 4, *((96, 96), (24, 24, 24))[dims - 2]).contiguous(memory_format=LAYOUTS[dims])


def places_of_norms(sequence, x, monkeypatch):
    """Return what a sequence gives, and whether its norm wrote over what the convolution gave."""
    convolution, places = sequence[0], []
    own = type(convolution)._conv_forward

    def seen(*arguments):
        found = own(*arguments)
        places.append(found.data_ptr())
        return found

    monkeypatch.setattr(type(convolution), "_conv_forward", seen)
    watch = sequence[2].register_forward_pre_hook(lambda _, given: places.append(given[0].data_ptr()))
    found = sequence(x)
    watch.remove()
    return found, places[0] == places[1]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("dims", [2, 3])
def test_without_a_gradient_norms_write_over_what_convolutions_gave(dims, precision, mode, monkeypatch):
    sequence, x = sequence_and_map(dims)
    given = x.clone()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        expected = sequence(x)
        with mode():
            found, is_same_place = places_of_norms(sequence, x, monkeypatch)
    assert is_same_place
    assert torch.equal(found, expected)
    assert torch.equal(x, given)


def test_with_a_gradient_they_do_not(monkeypatch):
    sequence, x = sequence_and_map(3)
    assert not places_of_norms(sequence, x, monkeypatch)[1]


@pytest.mark.parametrize("which", ["convolution", "norm", "norm before", "all_modules", "all_modules before"])
def test_what_hooks_see_is_not_written_over(which):
    sequence, x = sequence_and_map(3)
    kept = []

    def keep(module, given, *found):
        kept.extend((one, one.clone()) for one in (*given, *found) if module in sequence[:2])

    everywhere = nn.modules.module
    register = {
        "convolution": sequence[0].register_forward_hook,
        "norm": sequence[1].register_forward_hook,
        "norm before": sequence[1].register_forward_pre_hook,
        "all_modules": everywhere.register_module_forward_hook,
        "all_modules before": everywhere.register_module_forward_pre_hook,
    }[which]
    handle = register(keep)
    with torch.no_grad():
        sequence(x)
    handle.remove()
    assert len(kept) == {"norm before": 1, "all_modules": 4}.get(which, 2)
    assert all(torch.equal(one, copied) for one, copied in kept)


@pytest.mark.parametrize("first", [nn.Identity(), nn.LeakyReLU(inplace=True)], ids=str)
def test_norms_leave_alone_what_no_convolution_gave(first):
    sequence = suited(nn.Sequential(first, nn.InstanceNorm3d(4), nn.Conv3d(4, 4, 1), nn.InstanceNorm3d(4)))
    x = sequence_and_map(3)[1].abs()
    given = x.clone()
    with torch.no_grad():
        sequence(x)
    assert torch.equal(x, given)


class Keeping(layers.Conv3d):
    """A convolution that keeps what it gave."""

    def forward(self, x):
        self.kept = super().forward(x)
        return self.kept


@pytest.mark.parametrize("how", ["subclass", "forward", "parametrization"])
def test_convolutions_and_norms_that_were_changed_are_called_as_they_are(how):
    sequence, x = sequence_and_map(3)
    kept = []
    if how == "subclass":
        keeping = Keeping(4, 8, 3, padding=1)
        sequence[0] = keeping
    elif how == "forward":
        own, norm = sequence[0].forward, sequence[1].forward
        sequence[0].forward = lambda x: kept.append(own(x)) or kept[0]
        sequence[1].forward = lambda x: 0 * norm(x) + 7
    else:
        torch.nn.utils.parametrize.register_parametrization(sequence[1], "weight", nn.Softplus())
    expected = sequence(x)
    before = None if how == "parametrization" else (sequence[0].kept if how == "subclass" else kept.pop()).clone()
    with torch.no_grad():
        found = sequence(x)
    assert torch.equal(found, expected)
    if before is not None:
        assert torch.equal(sequence[0].kept if how == "subclass" else kept.pop(), before)


@pytest.mark.parametrize("unusual", ["float64", "without a batch", "running statistics", "vmap", "meta"])
def test_unusual_sequences_give_what_torchs_give_without_a_gradient(unusual):
    torch.manual_seed(0)
    norm = nn.InstanceNorm3d(8, track_running_stats=unusual == "running statistics")
    plain = nn.Sequential(nn.Conv3d(4, 8, 3, padding=1), norm).eval()
    x = sequence_and_map(3)[1]
    if unusual == "float64":
        plain, x = plain.double(), x.double()
    if unusual == "without a batch":
        x = x[0]
    if unusual == "meta":
        plain, x = plain.to("meta"), x.to("meta")
    with torch.no_grad():
        if unusual == "vmap":
            found, expected = (torch.vmap(each)(x[None]) for each in (suited(plain), plain))
        else:
            found, expected = suited(plain)(x), plain(x)
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    if unusual != "meta":
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


class Grown(nn.Module):
    """A map from its size."""

    def forward(self, size):
        return torch.arange(4.0 * size**3).view(1, 4, size, size, size)


def test_sequences_take_other_things_than_maps():
    plain = nn.Sequential(Grown(), nn.Conv3d(4, 8, 1), nn.InstanceNorm3d(8))
    with torch.no_grad():
        torch.testing.assert_close(suited(plain)(3), plain(3))


def test_sequences_refuse_what_torchs_refuse():
    plain = nn.Sequential(nn.Conv3d(4, 8, 1), nn.InstanceNorm3d(8))
    for sequence in (plain, suited(plain)):
        with torch.no_grad(), pytest.raises(ValueError, match="Expected more than 1 spatial element"):
            sequence(torch.randn(1, 4, 1, 1, 1))


def test_only_sequences_with_a_norm_after_a_convolution_change():
    plain = nn.Sequential(nn.Sequential(nn.Conv2d(4, 8, 1), nn.ReLU(), nn.InstanceNorm2d(8)), nn.Conv2d(8, 8, 1))
    changed = suited(
        nn.Sequential(plain, nn.InstanceNorm2d(8), nn.Sequential(nn.Conv2d(8, 8, 1), nn.InstanceNorm2d(8)))
    )
    assert [type(each) is nn.Sequential for each in (changed, changed[0], changed[0][0], changed[2])] == [
        True, True, True, False,
    ]  # fmt: skip
