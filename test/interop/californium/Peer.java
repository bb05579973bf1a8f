import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.HexFormat;
import java.util.concurrent.atomic.AtomicInteger;

import org.eclipse.californium.core.CoapClient;
import org.eclipse.californium.core.CoapResource;
import org.eclipse.californium.core.CoapResponse;
import org.eclipse.californium.core.CoapServer;
import org.eclipse.californium.core.coap.CoAP;
import org.eclipse.californium.core.coap.CoAP.ResponseCode;
import org.eclipse.californium.core.coap.Request;
import org.eclipse.californium.core.config.CoapConfig;
import org.eclipse.californium.core.network.CoapEndpoint;
import org.eclipse.californium.core.server.resources.CoapExchange;
import org.eclipse.californium.cose.AlgorithmID;
import org.eclipse.californium.elements.config.Configuration;
import org.eclipse.californium.elements.config.UdpConfig;
import org.eclipse.californium.oscore.ContextRederivation;
import org.eclipse.californium.oscore.HashMapCtxDB;
import org.eclipse.californium.oscore.OSCoreCoapStackFactory;
import org.eclipse.californium.oscore.OSCoreCtx;
import org.eclipse.californium.oscore.OSCoreResource;

/**
 * An OSCORE endpoint on Californium, for the tests of interoperation.
 *
 * <pre>
 * Peer server SECRET SALT SENDER-ID RECIPIENT-ID [renew]
 * Peer client SECRET SALT SENDER-ID RECIPIENT-ID URI OPERATION SEQUENCE
 * </pre>
 *
 * With "renew", also as an operation, contexts are derived again by RFC 8613,
 * Appendix B.2; the client begins with it, then asks twice.
 *
 * Byte strings are hexadecimal, "-" is the empty one. The server prints
 * "ready PORT" and ends with its standard input. The client prints one line per
 * response: code, a space, the payload or its length and sum when it is long.
 */
public class Peer {
	static final int LARGE = 3000;

	static {
		CoapConfig.register();
		UdpConfig.register();
	}

	public static void main(String[] args) throws Exception {
		Configuration.setStandard(Configuration.createStandardWithoutFile());
		OSCoreCtx ctx = new OSCoreCtx(bytes(args[1]), args[0].equals("client"), AlgorithmID.AES_CCM_16_64_128,
				bytes(args[3]), bytes(args[4]), AlgorithmID.HKDF_HMAC_SHA_256, 32, bytes(args[2]), null, 4096);
		ctx.setContextRederivationEnabled(Arrays.asList(args).contains("renew"));
		HashMapCtxDB contexts = new HashMapCtxDB();
		OSCoreCoapStackFactory.useAsDefault(contexts);
		if (args[0].equals("server")) {
			contexts.addContext(ctx);
			serve();
		} else {
			ctx.setSenderSeq(Integer.parseInt(args[7])); // the next one never used under this context
			if (args[6].equals("renew")) {
				ctx.setContextRederivationPhase(ContextRederivation.PHASE.CLIENT_INITIATE);
			}
			contexts.addContext(args[5], ctx);
			ask(args[5], args[6]);
		}
	}

	static byte[] bytes(String hex) {
		return hex.equals("-") ? new byte[0] : HexFormat.of().parseHex(hex);
	}

	static byte[] large() {
		byte[] b = new byte[LARGE];
		for (int i = 0; i < b.length; i++) {
			b[i] = (byte) ('a' + i % 26);
		}
		return b;
	}

	static void serve() throws Exception {
		Configuration config = Configuration.getStandard();
		CoapServer server = new CoapServer(config);
		CoapEndpoint endpoint = CoapEndpoint.builder().setConfiguration(config)
				.setInetSocketAddress(new java.net.InetSocketAddress("127.0.0.1", 0)).build();
		server.addEndpoint(endpoint);
		server.add(new OSCoreResource("hello", true) {
			@Override
			public void handleGET(CoapExchange x) {
				x.respond(ResponseCode.CONTENT, "Hello World!");
			}

			@Override
			public void handlePOST(CoapExchange x) {
				x.respond(ResponseCode.CHANGED, Arrays.copyOf(x.getRequestPayload(), x.getRequestPayload().length));
			}
		});
		server.add(new OSCoreResource("large", true) {
			@Override
			public void handleGET(CoapExchange x) {
				x.respond(ResponseCode.CONTENT, large());
			}
		});
		server.add(new Counter());
		server.start();
		System.out.println("ready " + endpoint.getAddress().getPort());
		while (System.in.read() >= 0) {
		}
		server.destroy();
	}

	/** A resource that may be observed: a POST moves it on. */
	static class Counter extends CoapResource {
		final AtomicInteger n = new AtomicInteger();

		Counter() {
			super("counter", true);
			setObservable(true);
			setObserveType(CoAP.Type.NON);
		}

		@Override
		public void handleGET(CoapExchange x) {
			x.respond(ResponseCode.CONTENT, "count " + n.get());
		}

		@Override
		public void handlePOST(CoapExchange x) {
			n.incrementAndGet();
			x.respond(ResponseCode.CHANGED);
			changed();
		}
	}

	static void ask(String uri, String operation) throws Exception {
		CoapClient client = new CoapClient(uri);
		client.setTimeout(10000L);
		switch (operation) {
		case "get" -> print(client.advanced(request(Request.newGet())));
		case "post" -> print(client.advanced(request(payload(Request.newPost(), "some text".getBytes()))));
		case "post-large" -> print(client.advanced(request(payload(Request.newPost(), large()))));
		case "renew" -> {
			print(client.advanced(request(Request.newGet())));
			print(client.advanced(request(Request.newGet())));
		}
		default -> throw new IllegalArgumentException(operation);
		}
		client.shutdown();
		System.exit(0);
	}

	static Request request(Request r) {
		r.getOptions().setOscore(new byte[0]);
		return r;
	}

	static Request payload(Request r, byte[] body) {
		r.setPayload(body);
		return r;
	}

	static void print(CoapResponse r) {
		if (r == null) {
			System.out.println("none");
			return;
		}
		byte[] body = r.getPayload();
		if (body.length <= 64) {
			System.out.println(r.getCode() + " " + new String(body, StandardCharsets.UTF_8));
			return;
		}
		int sum = 0;
		for (byte b : body) {
			sum += b & 0xff;
		}
		System.out.println(r.getCode() + " " + body.length + " bytes, sum " + sum);
	}
}
