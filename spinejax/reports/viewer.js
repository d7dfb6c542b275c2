"use strict";
// The viewer of a scan's page. Two canvases: the planes show scan and labels, the other one the
// labels alone in 3D, since a scan around them would hide them.
(async () => {
  const get = (id) => document.getElementById(id);
  const all = (selector) => [...document.querySelectorAll(selector)];
  const data = JSON.parse(get("data").textContent);
  const stage = get("stage"), place = get("place"), loading = get("loading");
  const phone = matchMedia("(max-width: 700px)");

  const bytes = (id) => Uint8Array.from(atob(get(id).textContent.trim()), (c) => c.charCodeAt(0));
  const unpacked = async (id) =>
    await new Response(
      new Blob([bytes(id)]).stream().pipeThrough(new DecompressionStream("gzip"))
    ).arrayBuffer();

  async function open() {
    const script = document.createElement("script");
    script.textContent = new TextDecoder().decode(await unpacked("niivue"));
    document.head.append(script);
    const {Niivue, DRAG_MODE} = window.niivue;
    const common = {
      backColor: [0, 0, 0, 1], crosshairColor: [1, 0.82, 0.25, 0.9], fontColor: [0.93, 0.95, 0.96, 1],
      isRadiologicalConvention: true, sagittalNoseLeft: true, dragAndDropEnabled: false,
      dragMode: DRAG_MODE.windowing, logLevel: "error", loadingText: "", crosshairWidth: 0.5, crosshairWidthUnit: "mm", crosshairGap: 4,
      isCornerOrientationText: false, scrollRequiresFocus: true,
    };
    const planes = new Niivue({...common});
    const render = new Niivue({...common});
    await planes.attachToCanvas(get("planes"));
    await render.attachToCanvas(get("render"));

    const table = {R: [0], G: [0], B: [0], A: [0], I: [0], labels: [""]};
    for (const {id, name, rgb} of data.labels) {
      table.R.push(rgb[0]); table.G.push(rgb[1]); table.B.push(rgb[2]);
      table.A.push(255); table.I.push(id); table.labels.push(name);
    }
    const names = new Map(data.labels.map(({id, name}) => [id, name]));
    const mask = await unpacked("mask");
    await planes.loadFromArrayBuffer(await unpacked("scan"), "scan.nii");
    await planes.loadFromArrayBuffer(mask.slice(0), "labels.nii");
    await render.loadFromArrayBuffer(mask, "labels.nii");
    for (const volume of [planes.volumes[1], render.volumes[0]]) volume.setColormapLabel(table);
    render.setSliceType(render.sliceTypeRender);
    render.setRenderAzimuthElevation(120, 10);
    render.updateGLVolume();

    const press = (selector, chosen) => {
      for (const button of all(selector)) button.setAttribute("aria-pressed", button === chosen);
    };

    // Tiles as left, top, width, height in shares of the stage. The sagittal and the coronal tile
    // have one scale and one height, so that levels lie beside one another; 3D fills what is free.
    function tiled() {
      const wide = stage.clientWidth, high = stage.clientHeight, [x, y, z] = data.extent_mm;
      const [across, down] = phone.matches ? [1, 0.62] : [0.74, 1];
      const scale = Math.min(across * wide / (x + y), down * high / z);
      const [side, front] = [y * scale / wide, x * scale / wide];
      if (phone.matches) {
        const left = Math.max(0, (1 - side - front) / 2), top = Math.min(z * scale / high, down);
        return {
          planes: [[2, left, 0, side, top], [1, left + side, 0, front, top], [0, 0, top, 0.5, 1 - top]],
          render: [0.5, top, 0.5, 1 - top],
        };
      }
      const right = side + front, axial = Math.min(0.5, (1 - right) * wide * y / x / high);
      return {
        planes: [[2, 0, 0, side, 1], [1, side, 0, front, 1], [0, right, 0, 1 - right, axial]],
        render: [right, axial, 1 - right, 1 - axial],
      };
    }
    const single = {sagittal: 2, coronal: 1, axial: 0};
    let view = "all";
    function show(name) {
      view = name;
      press("[data-view]", document.querySelector(`[data-view="${name}"]`));
      const layout = tiled();
      const box = name === "all" ? layout.render : [0, 0, 1, 1];
      get("render-box").hidden = name in single;
      get("render-box").style.cssText =
        `left:${box[0] * 100}%;top:${box[1] * 100}%;width:${box[2] * 100}%;height:${box[3] * 100}%`;
      const tiles = name === "all" ? layout.planes : name in single ? [[single[name], 0, 0, 1, 1]] : [];
      get("planes-box").hidden = !tiles.length;
      if (tiles.length)
        planes.setCustomLayout(tiles.map(([type, ...position]) => ({sliceType: type, position})));
      planes.resizeListener(); render.resizeListener();
    }

    function windowed(name) {
      const [low, high] = data.windows[name];
      planes.volumes[0].cal_min = low; planes.volumes[0].cal_max = high;
      planes.updateGLVolume();
      press("[data-window]", document.querySelector(`[data-window="${name}"]`));
    }

    const mark = (name) => {
      for (const one of all("[data-name]")) {
        if (one.dataset.name === name) one.setAttribute("aria-current", "true");
        else one.removeAttribute("aria-current");
      }
    };

    const words = (mm) => mm.map((side, axis) =>
      `${["LR", "PA", "IS"][axis][side < 0 ? 0 : 1]} ${Math.abs(side).toFixed(0)}`).join(", ") + " mm";

    planes.onLocationChange = ({mm, values}) => {
      const at = [...mm].slice(0, 3), hu = values[0].value, name = names.get(Math.round(values[1].value));
      place.textContent = `${name ?? "No label"} · ${hu < 0 ? "−" : ""}${Math.abs(hu).toFixed(0)} HU · ${words(at)}`;
      place.dataset.mm = at.map((side) => side.toFixed(2)).join(" ");
      place.dataset.name = name ?? "";
      mark(name);
      render.scene.crosshairPos = render.mm2frac(mm, 0, true);
      render.drawScene();
    };

    function move(mm) {
      planes.scene.crosshairPos = planes.mm2frac(mm, 0, true);
      planes.createOnLocationChange();
      planes.drawScene();
    }

    function jump(button) {
      move(button.dataset.mm.split(" ").map(Number));
      history.replaceState(null, "", "#" + encodeURIComponent(button.dataset.name));
    }
    const named = (name) => all("button.jump").find((one) => one.dataset.name === name);
    for (const button of all("button.jump"))
      button.addEventListener("click", () => {
        jump(button);
        if (button.closest("table")) stage.scrollIntoView({block: "nearest"});
      });
    for (const button of all("[data-view]")) button.addEventListener("click", () => show(button.dataset.view));
    for (const button of all("[data-window]"))
      button.addEventListener("click", () => windowed(button.dataset.window));
    const opacity = () => planes.setOpacity(1, get("opacity").value / 100);
    get("opacity").addEventListener("input", opacity);
    get("outlines").addEventListener("change", () => {
      const only = get("outlines").checked;  // NiiVue draws an outline over what is clear, too
      planes.volumes[1].setColormapLabel({...table, A: table.A.map((a) => (only ? 0 : a))});
      planes.setAtlasOutline(only ? 1 : 0);
    });
    new ResizeObserver(() => show(view)).observe(stage);
    addEventListener("hashchange", () => {
      const button = named(decodeURIComponent(location.hash.slice(1)));
      if (button) jump(button);
    });

    show("all"); opacity(); windowed(Object.keys(data.windows)[0]);
    loading.remove();
    const first = named(decodeURIComponent(location.hash.slice(1)));
    if (first) jump(first);
    else move(data.middle_mm);
    window.viewer = {planes, render};
    stage.dataset.ready = "true";
  }

  try {
    await open();
  } catch (problem) {
    loading.className = "failed";
    loading.textContent =
      `This browser cannot draw the scan (${problem.message ?? problem}). It needs WebGL 2. ` +
      "The pictures and the table below do not.";
    stage.dataset.ready = "failed";
  }
})();
