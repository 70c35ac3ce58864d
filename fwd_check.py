import torch, sys, time, random, copy
from pathlib import Path
from qgru import QuantGRU
from qgru.ops import library
from qgru.ops.cuda.layer import layer_of, Shape
from tests.ops.test_cuda import calibrated
bad=0
def check(hidden, inputs, config, batch, time_, **o):
    global bad
    gru=calibrated(hidden,inputs,config,**{k:v for k,v in o.items() if k not in("h0","grad")})
    x=torch.randn(time_,batch,inputs)
    d=gru.num_layers*(2 if gru.bidirectional else 1)
    h0=torch.randn(d,batch,hidden) if o.get("h0") else None
    with torch.no_grad(): want=gru(x,h0)
    g=copy.deepcopy(gru).cuda()
    grids=[c.resolved() for c in g._quant_state().cells]
    taken=library.kernels_for(x.cuda(),g._cells(),grids,2 if g.bidirectional else 1) is not None
    try:
        res=[]
        with torch.no_grad(): res.append(g(x.cuda(),None if h0 is None else h0.cuda()))
        with torch.enable_grad(): res.append(g(x.cuda(),None if h0 is None else h0.cuda()))
        torch.cuda.synchronize()
        diffs=[int((r[i].detach().cpu()!=want[i]).sum()) for r in res for i in (0,1)]
    except Exception as e:
        diffs=repr(e)[:300]
    ok=taken and diffs==[0,0,0,0]
    bad+=not ok
    print("ok " if ok else "BAD",hidden,inputs,config,batch,time_,o,taken,diffs,flush=True)
cases=[]
for c in ("int8","int8_mixed","w4a8","w8a16","int16"):
    for h,b in ((1,1),(37,5),(64,9),(128,4),(129,3),(256,2)):
        cases.append((h,19,c,b,8,dict(h0=True)))
    cases.append((500,19,c,3,5,dict(h0=True))); cases.append((300,7,c,40,9,{})); cases.append((1000,33,c,3,4,{})); cases.append((1024,70,c,128,3,{})); cases.append((40,6,c,1100,5,{}))
for c in ("int8","w8a16","int16"): cases.append((2048,20,c,5,3,{})); cases.append((50,10,c,6,11,dict(num_layers=2,bidirectional=True)))
cases.append((600,5,"int8",2200//10,30,{}))
cases.append((700,5,"int8",7,50,dict(bidirectional=True)))
cases.append((3000,5,"int8",2,3,{}))
t0=time.time()
for c in cases:
    if time.time()-t0>float(sys.argv[1]): print("stopped"); break
    check(*c[:5],**c[5])
print("bad",bad,time.time()-t0)
